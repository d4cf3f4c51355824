/**
 * Finds the process at the other end of a monitor socket (SO_PEERCRED, unix(7)), and whether it is a QEMU.
 */

import { readlink } from 'node:fs/promises';
import { basename } from 'node:path';

import { readProcessText } from '../../src/host/process-text.js';
import { processStartTime, type ProcessIdentity } from '../../src/host/process-identity.js';
import { CheckpointError, systemErrorCode } from '../../src/errors.js';
import { peerCredentials } from '../../src/ffi/peer-credentials.js';

/** Ids under which a process has made its end of a connection. */
export interface PeerUser {
  readonly user: number;
  readonly group: number;
}

export interface QemuProcess extends ProcessIdentity {
  /** Path of its program; what is left of it when it was deleted or replaced by an upgrade. */
  readonly program: string;
  /** As whom it opened the socket of its monitor; absent where that was not seen. */
  readonly openedMonitorAs?: PeerUser | undefined;
}

/** Process id of whoever listens on the socket. @throws FFI_FAILED, VM_UNSUPPORTED */
export function peerPid(descriptor: number): number {
  return peerOf(descriptor).pid;
}

/**
 * Whoever listens on the socket, with the effective ids that it had when it began to listen: a process that
 * gives rights up afterwards changes nothing of that, and can only have had them. @throws FFI_FAILED
 */
export function peerOf(descriptor: number): PeerUser & { readonly pid: number } {
  const { pid, uid, gid } = peerCredentials(descriptor);
  return { pid, user: uid, group: gid };
}

/**
 * The file of a process; for who may not see that, the name it was called by, which everybody may read.
 * @throws VM_GONE, VM_PERMISSION
 */
async function programOf(pid: number, what: string): Promise<string> {
  try {
    return (await readlink(`/proc/${pid}/exe`)).replace(/ \(deleted\)$/, '');
  } catch (cause) {
    if (systemErrorCode(cause) === 'EACCES' || systemErrorCode(cause) === 'EPERM') {
      const called = (await readProcessText(`/proc/${pid}/cmdline`).catch(() => '')).split('\0')[0] ?? '';
      if (called !== '') return called;
      throw new CheckpointError('VM_PERMISSION', `no access to process ${pid} behind ${what}`, {
        cause,
        hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE',
      });
    }
    throw new CheckpointError('VM_GONE', `process ${pid} behind ${what} has ended`, { cause });
  }
}

/** The QEMU behind a connected monitor. @throws see `qemuProcess` */
export async function qemuBehind(descriptor: number, what: string): Promise<QemuProcess> {
  const { pid, user, group } = peerOf(descriptor);
  return { ...(await qemuProcess(pid, what)), openedMonitorAs: { user, group } };
}

/** @throws VM_UNSUPPORTED when the listener is no QEMU of this host, VM_GONE, VM_PERMISSION */
export async function qemuProcess(pid: number, what: string): Promise<QemuProcess> {
  if (pid <= 0) {
    throw new CheckpointError('VM_UNSUPPORTED', `the process behind ${what} is not visible from here`, {
      hint: 'run cairn in the PID namespace of the host, not in a container of its own',
    });
  }
  const program = await programOf(pid, what);
  if (!/qemu|kvm/.test(basename(program))) {
    throw new CheckpointError('VM_UNSUPPORTED', `process ${pid} behind ${what} is ${program}, not a QEMU`, {
      hint: 'name the QMP socket that QEMU itself opened; a socket handed over by a manager shows the manager. For libvirt use libvirt:NAME',
      detail: { pid, program },
    });
  }
  const startTime = await processStartTime(pid);
  if (startTime === '') throw new CheckpointError('VM_GONE', `process ${pid} behind ${what} has ended`);
  return { pid, startTime, program };
}
