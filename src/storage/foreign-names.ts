/** What lies in a folder before a repository is made in it. */

import { readdir } from 'node:fs/promises';

import { systemErrorCode } from '../errors.js';
import { isTempName } from './temp-files.js';

/** Folders that file systems have of themselves at their top: ext4, ZFS, and the filers of NetApp. */
const OF_FILE_SYSTEMS = ['lost+found', '.zfs', '.snapshot'];

/**
 * Names but those of `known` that the file system has not put there, sorted. What Cairn was writing when it
 * was cut off does not count. Empty when there is no such folder.
 */
export async function foreignNamesIn(folder: string, known: readonly string[]): Promise<readonly string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw error;
  });
  return entries
    .filter((entry) => !(entry.isDirectory() && OF_FILE_SYSTEMS.includes(entry.name)))
    .filter((entry) => !(entry.isFile() && isTempName(entry.name)))
    .map(({ name }) => name)
    .filter((name) => !known.includes(name))
    .sort();
}
