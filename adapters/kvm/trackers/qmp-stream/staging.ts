/**
 * The staging file: all guest memory as the last stream left it, page p of the flat page space at p x 4096.
 * Sparse, without a name, as large as the guest's used memory. A stream brings every page anew, so it needs
 * to outlive nothing.
 *
 * It lies in memory, or in the folder that CAIRN_STREAM_DIR names.
 */

import { closeSync, constants, ftruncateSync, openSync, readFileSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';

import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { errnoName, libc } from '../../../../src/ffi/libc.js';
import { createMemoryFile } from '../../../../src/ffi/memory-file.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';

const SYS_FALLOCATE = 285;
/** __O_TMPFILE | O_DIRECTORY of asm-generic/fcntl.h */
const O_TMPFILE = 0o20200000;
/** FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h */
const PUNCH_HOLE = 3;

/** Folder for the staging file; undefined: memory. */
export function stagingFolder(env: NodeJS.ProcessEnv = process.env): string | undefined {
  const folder = env.CAIRN_STREAM_DIR;
  return folder === undefined || folder === '' ? undefined : folder;
}

/** Memory that the host can still give out. */
export function availableMemoryBytes(): number {
  const kib = /^MemAvailable:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'latin1'))?.[1];
  return Number(kib ?? 0) * 1024;
}

/** @returns a descriptor that the caller closes @throws TRACKER_UNAVAILABLE, FFI_FAILED */
export function openStaging(layout: MemoryLayout): number {
  const folder = stagingFolder();
  const descriptor = folder === undefined ? createMemoryFile('cairn-stream') : openNameless(folder);
  try {
    ftruncateSync(descriptor, layout.pageSpan * PAGE_SIZE_BYTES);
    return descriptor;
  } catch (cause) {
    closeSync(descriptor);
    throw cannotStage(cause);
  }
}

/** Frees the memory of pages that are zero from now on: reading them gives zeros. @throws TRACKER_FAILED */
export function punchHole(descriptor: number, firstPage: number, pageCount: number): void {
  const done = libc().syscall(
    SYS_FALLOCATE,
    descriptor,
    PUNCH_HOLE,
    firstPage * PAGE_SIZE_BYTES,
    pageCount * PAGE_SIZE_BYTES,
  );
  if (done.value === 0) return;
  throw new CheckpointError('TRACKER_FAILED', `zero pages of the staging file: ${errnoName(done.errno)}`, {
    hint: 'CAIRN_STREAM_DIR has to lie on a file system with sparse files, such as ext4, xfs or tmpfs',
  });
}

function openNameless(folder: string): number {
  try {
    return openSync(folder, constants.O_RDWR | O_TMPFILE, 0o600);
  } catch (cause) {
    if (systemErrorCode(cause) !== 'EOPNOTSUPP') throw cannotStage(cause);
  }
  // A file system without nameless files: a Cairn that is killed in between leaves an empty one.
  const path = join(folder, `.cairn-stream-${process.pid}-${Date.now()}`);
  try {
    const descriptor = openSync(path, 'wx+', 0o600);
    unlinkSync(path);
    return descriptor;
  } catch (cause) {
    throw cannotStage(cause);
  }
}

function cannotStage(cause: unknown): CheckpointError {
  return new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `cannot make a staging file for guest memory: ${describeError(cause)}`,
    { cause, hint: 'CAIRN_STREAM_DIR names the folder for it' },
  );
}
