/**
 * Whether a RAM block lies in the template of a fork (`adapters/kvm/fork/template.ts`): a sealed file in
 * memory, mapped privately. Nobody else can change it, whoever has it mapped as well, and no balloon can take
 * a page out of it: what is true of private anonymous memory is true of it, but that a page which the process
 * never wrote to is not zero.
 */

import { closeSync, openSync, readdirSync, statSync } from 'node:fs';

import { isSealedMemoryFile } from '../../../src/ffi/memory-file.js';
import type { RamBlock } from './ram-blocks.js';

const PREFIX = 'cairn-fork-';

/** Of the file in memory. @param id unlike that of any other */
export function templateName(id: string): string {
  return `${PREFIX}${id}`;
}

export function isSealedTemplate(pid: number, { backing, file }: RamBlock): boolean {
  // A shared mapping of it would be of `shared-memory`.
  if (backing !== 'file' || file?.path.startsWith(`/memfd:${PREFIX}`) !== true) return false;
  try {
    return readdirSync(`/proc/${pid}/fd`).some((name) => isSealed(`/proc/${pid}/fd/${name}`, file.inode));
  } catch {
    return false;
  }
}

function isSealed(path: string, inode: number): boolean {
  try {
    if (statSync(path).ino !== inode) return false;
    const descriptor = openSync(path, 'r');
    try {
      return isSealedMemoryFile(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch {
    // Closed in the meantime, or not a file at all.
    return false;
  }
}
