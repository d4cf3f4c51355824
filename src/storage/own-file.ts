/**
 * Whose file lies under a name, asked of the file system itself: over NFS a name is looked up from a cache,
 * and only an open asks the server.
 */

import { constants } from 'node:fs';
import { open } from 'node:fs/promises';

import { systemErrorCode } from '../errors.js';

export interface Inode {
  readonly dev: bigint;
  readonly ino: bigint;
}

/** Undefined when there is no file of this name. @throws the system error of anything else */
export async function inodeAt(path: string): Promise<(Inode & { readonly sizeBytes: number }) | undefined> {
  let file;
  try {
    // Whatever else lies under the name, such as a pipe, is not waited for.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const errno = systemErrorCode(error);
    if (errno === 'ENOENT' || errno === 'ENOTDIR') return undefined;
    throw error;
  }
  try {
    const found = await file.stat({ bigint: true });
    return found.isFile() ? { dev: found.dev, ino: found.ino, sizeBytes: Number(found.size) } : undefined;
  } finally {
    await file.close();
  }
}

/** With these the file system itself refuses a new name: no request is under way any more. */
const REFUSALS: readonly string[] = [
  ...['EEXIST', 'ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'EPERM', 'EMLINK', 'ENOTSUP', 'EOPNOTSUPP'],
  ...['ENAMETOOLONG', 'ENOTDIR', 'EISDIR', 'EXDEV'],
];

export function isClearRefusal(error: unknown): boolean {
  return REFUSALS.includes(systemErrorCode(error) ?? '');
}
