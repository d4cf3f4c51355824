/**
 * A lock on a running VM that nobody can take who may not work on the VM.
 *
 *     VM is a process   flock(2) on the folder /proc/PID/fd, which only root and the user of the process can
 *                       open: those two exclude each other, and a third user cannot come between
 *     otherwise         flock(2) on a file in the runtime folder
 *
 * It is taken back by the kernel when its owner ends, however that ends.
 */

import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { join } from 'node:path';

import { CheckpointError, systemErrorCode } from '../errors.js';
import { lockHolder, tryLock } from '../ffi/file-lock.js';
import { hasLibc } from '../ffi/libc.js';
import type { Vm } from '../hypervisor/vm.js';
import { processStartTimeSync } from './process-identity.js';
import { fileNameOf } from './runtime-file.js';

export type Gate =
  | {
      readonly state: 'held';
      readonly descriptor: number;
      /** Users that may work on the VM. */
      readonly userIds: readonly number[];
    }
  | { readonly state: 'taken'; readonly pid: number | undefined }
  /** This user cannot have it: it is none of those whom the gate keeps apart. */
  | { readonly state: 'barred' };

/** @throws VM_GONE, FFI_FAILED */
export function takeGate(
  { identity, process: ofVm }: Pick<Vm, 'identity' | 'process'>,
  runtimeDir: string,
): Gate {
  const path = ofVm === undefined ? join(runtimeDir, `lock-${fileNameOf(identity)}`) : `/proc/${ofVm.pid}/fd`;
  // A file that is imported is read on any machine, and only here are these calls known.
  if (ofVm === undefined && !hasLibc()) return { state: 'barred' };
  const descriptor = openGate(path, ofVm === undefined);
  if (descriptor === undefined) return { state: 'barred' };
  try {
    // Only now: a later process of the same id would have another folder.
    if (ofVm !== undefined && processStartTimeSync(ofVm.pid) !== ofVm.startTime)
      throw new CheckpointError('VM_GONE', `process ${ofVm.pid} of the VM has ended`);
    const { ino, uid } = fstatSync(descriptor);
    if (tryLock(descriptor)) {
      const own = process.geteuid?.() ?? uid;
      return { state: 'held', descriptor, userIds: [0, own, uid] };
    }
    const pid = lockHolder(ino);
    closeSync(descriptor);
    return { state: 'taken', pid };
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

export function leaveGate(gate: Gate): void {
  if (gate.state === 'held') closeSync(gate.descriptor);
}

/** Undefined without the right to. @throws VM_GONE, and what the system says */
function openGate(path: string, isFile: boolean): number | undefined {
  const { O_RDONLY, O_DIRECTORY, O_RDWR, O_CREAT, O_NOFOLLOW } = constants;
  try {
    return openSync(path, isFile ? O_RDWR | O_CREAT | O_NOFOLLOW : O_RDONLY | O_DIRECTORY, 0o600);
  } catch (error) {
    switch (systemErrorCode(error)) {
      case 'EACCES':
      case 'EPERM':
        return undefined;
      case 'ENOENT':
        if (!isFile)
          throw new CheckpointError('VM_GONE', 'the process of the VM has ended', { cause: error });
        throw error;
      default:
        throw error;
    }
  }
}
