/** Small files of the runtime folder: replaced whole or not at all. */

import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError, describeError, systemErrorCode } from '../errors.js';
import type { ProcessIdentity } from './process-identity.js';
import type { VmIdentity } from '../hypervisor/vm.js';

/** The part of a file's name that stands for one running instance of one VM. */
export function fileNameOf(identity: VmIdentity): string {
  return `${identity.hypervisor}-${identity.instance.replace(/[^A-Za-z0-9.-]/g, '_')}`;
}

/**
 * Writes the file under another name beside it and renames that. Not synced: the folder does not outlive the
 * host's boot.
 * @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO, with the file as it was and nothing beside it
 */
export async function writeRuntimeFile(path: string, text: string): Promise<void> {
  const fresh = `${path}.${process.pid}`;
  try {
    // What an ended process of the same number left is not written through, whatever it is.
    await rm(fresh, { force: true });
    await writeFile(fresh, text, { mode: 0o600, flag: 'wx' });
    await rename(fresh, path);
  } catch (cause) {
    await rm(fresh, { force: true }).catch(() => undefined);
    throw notWritten(path, cause);
  }
}

/** Does what `writeRuntimeFile` does, where nothing may come in between. @throws the same */
export function writeRuntimeFileSync(path: string, text: string): void {
  const fresh = `${path}.${process.pid}`;
  try {
    rmSync(fresh, { force: true });
    writeFileSync(fresh, text, { mode: 0o600, flag: 'wx' });
    renameSync(fresh, path);
  } catch (cause) {
    rmSync(fresh, { force: true });
    throw notWritten(path, cause);
  }
}

/**
 * Path of a file that belongs to one process; `sweepRuntimeDir` knows it by its name when the process has
 * ended.
 */
export function processFile(runtimeDir: string, kind: string, process: ProcessIdentity): string {
  return join(runtimeDir, `${kind}-${process.pid}-${process.startTime}.json`);
}

function notWritten(path: string, cause: unknown): CheckpointError {
  return new CheckpointError(codeOf(cause), `writing ${path}: ${describeError(cause)}`, {
    cause,
    hint: 'the runtime folder needs a few KiB; free some, or name another one with CAIRN_RUNTIME_DIR',
  });
}

function codeOf(cause: unknown): 'STORAGE_FULL' | 'STORAGE_READ_ONLY' | 'STORAGE_IO' {
  switch (systemErrorCode(cause)) {
    case 'ENOSPC':
    case 'EDQUOT':
      return 'STORAGE_FULL';
    case 'EROFS':
    case 'EACCES':
    case 'EPERM':
      return 'STORAGE_READ_ONLY';
    default:
      return 'STORAGE_IO';
  }
}
