/** Folders that a fork makes, and that go with it when it fails. */

import { mkdirSync } from 'node:fs';
import { chown } from 'node:fs/promises';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import type { StartRights } from '../restore/start-rights.js';
import { refused } from './refused.js';

/**
 * Nobody else may look into it: what it gets is memory and disks of a guest.
 * @param onMade hears of it in the same moment: between the two this process can hardly be killed
 * @throws FORK_REFUSED when something is there, RESTORE_FAILED
 */
export function makeFolder(path: string, onMade: (path: string) => void): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (cause) {
    if (systemErrorCode(cause) !== 'EEXIST')
      throw new CheckpointError('RESTORE_FAILED', `making ${path}: ${describeError(cause)}`, { cause });
    throw refused('FOLDER_TAKEN', `${path} is there already`, {
      cause,
      hint: 'name other children with --name, or another folder with --dir',
      detail: { folder: path },
    });
  }
  onMade(path);
}

/**
 * Gives what was made to the user that QEMU runs as, also where QEMU begins as root and gives that up itself
 * (-runas).
 */
export async function giveToQemu(path: string, { atMost }: Pick<StartRights, 'atMost'>): Promise<void> {
  const [user, group] = [atMost?.users[1], atMost?.groups[1]];
  if (user === undefined || group === undefined || user === process.geteuid?.()) return;
  await chown(path, user, group);
}
