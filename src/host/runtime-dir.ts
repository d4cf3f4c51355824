/**
 * The folder for what belongs to this boot of this host only: sockets, device state on its way to the
 * repository, the ledger and locks. On a tmpfs by default, so that it is as volatile as the virtual machines
 * it speaks of.
 */

import { lstat, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';

import { CheckpointError, isCheckpointError } from '../errors.js';
import { FileTrust, type Replaceable } from './file-trust.js';

/**
 * CAIRN_RUNTIME_DIR, else /run/cairn for root, else $XDG_RUNTIME_DIR/cairn. Nothing below /tmp: there
 * somebody else may own the way to it.
 * @throws VM_PERMISSION when none is set
 */
export function defaultRuntimeDir(env: NodeJS.ProcessEnv = process.env): string {
  const chosen = env.CAIRN_RUNTIME_DIR;
  if (chosen !== undefined && chosen !== '') return chosen;
  if (process.getuid?.() === 0) return '/run/cairn';
  const ofSession = env.XDG_RUNTIME_DIR;
  if (ofSession !== undefined && ofSession !== '') return join(ofSession, 'cairn');
  throw new CheckpointError('VM_PERMISSION', 'there is no runtime folder for this user', {
    hint: 'name a folder that only this user can write to with CAIRN_RUNTIME_DIR',
  });
}

/** A file of this name is in a folder that Cairn has made, or has found empty: what is in it is Cairn's. */
const MARKER = '.cairn-runtime';

/**
 * Creates the folder when it is not there. Refuses one that others may write to: they could plant the paths
 * that a hypervisor running as root is told to write.
 * @throws VM_PERMISSION
 */
export async function openRuntimeDir(path: string): Promise<string> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    const found = await lstat(path);
    const owner = process.getuid?.() ?? found.uid;
    const isOwn = found.isDirectory() && found.uid === owner && (found.mode & 0o022) === 0;
    // Whoever may exchange a folder on the way to it could put another one in its place.
    const way = isOwn ? await new FileTrust([owner]).replaceable(resolve(path)) : undefined;
    if (isOwn && way === undefined) {
      if ((await readdir(path)).length === 0) await writeFile(join(path, MARKER), '', { mode: 0o600 });
      return path;
    }
    if (way !== undefined) throw unsafeWay(path, way);
  } catch (cause) {
    if (isCheckpointError(cause)) throw cause;
    throw new CheckpointError('VM_PERMISSION', `cannot use the runtime folder ${path}`, {
      cause,
      hint: 'name another one with CAIRN_RUNTIME_DIR',
    });
  }
  throw new CheckpointError(
    'VM_PERMISSION',
    `the runtime folder ${path} belongs to, or can be written by, somebody else`,
    {
      hint: `chown it to the user that runs cairn and chmod 700 ${path}, or name another one with CAIRN_RUNTIME_DIR`,
    },
  );
}

function unsafeWay(path: string, { path: place, why }: Replaceable): CheckpointError {
  return new CheckpointError('VM_PERMISSION', `the runtime folder ${path} is not safe: ${place} ${why}`, {
    hint: 'name a folder that only root and this user can exchange with CAIRN_RUNTIME_DIR',
  });
}

/**
 * Whether what lies in the folder may be taken for Cairn's by its name. Somebody may have named a folder for
 * it that other things are kept in as well.
 */
export async function isRuntimeDirOurs(path: string): Promise<boolean> {
  const marker = await lstat(join(path, MARKER)).catch(() => undefined);
  return marker?.isFile() === true && marker.uid === (process.getuid?.() ?? marker.uid);
}
