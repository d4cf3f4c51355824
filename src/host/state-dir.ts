/**
 * The folder for what belongs to this host and outlives its boots: the key by which it knows its own
 * checkpoints.
 */

import { mkdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

import { CheckpointError } from '../errors.js';
import { FileTrust } from './file-trust.js';

/** CAIRN_STATE_DIR, else /var/lib/cairn for root, else $XDG_STATE_HOME/cairn, else ~/.local/state/cairn. */
export function defaultStateDir(env: NodeJS.ProcessEnv = process.env): string {
  const { CAIRN_STATE_DIR = '', XDG_STATE_HOME = '' } = env;
  if (CAIRN_STATE_DIR !== '') return CAIRN_STATE_DIR;
  if (process.geteuid?.() === 0) return '/var/lib/cairn';
  return join(XDG_STATE_HOME === '' ? join(homedir(), '.local/state') : XDG_STATE_HOME, 'cairn');
}

/** Creates the folder when it is not there. @throws VM_PERMISSION when others could exchange what is in it */
export async function openStateDir(path: string): Promise<string> {
  const hint = 'name another folder with CAIRN_STATE_DIR';
  await mkdir(path, { recursive: true, mode: 0o700 }).catch((cause: unknown) => {
    throw new CheckpointError('VM_PERMISSION', `cannot make the state folder ${path}`, { cause, hint });
  });
  const found = await new FileTrust([process.geteuid?.() ?? 0]).replaceable(path);
  if (found === undefined) return path;
  throw new CheckpointError(
    'VM_PERMISSION',
    `the state folder ${path} is not safe: ${found.path} ${found.why}`,
    {
      hint,
    },
  );
}
