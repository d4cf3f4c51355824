/** Folders that a fork makes, and that go with it when it fails. */

import { mkdirSync } from 'node:fs';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import { refused } from './refused.js';

/**
 * @param onMade hears of it in the same moment: between the two this process can hardly be killed
 * @throws FORK_REFUSED when something is there, RESTORE_FAILED
 */
export function makeFolder(path: string, onMade: (path: string) => void, mode = 0o700): void {
  try {
    mkdirSync(path, { mode });
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
