/** Takes an open descriptor that another process has passed on a unix socket: see `send-descriptor.ts`. */

import { addressOf, libc } from './libc.js';

const SYS_RECVMSG = 47;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
/** struct cmsghdr { u64 len; i32 level; i32 type; } and one i32, padded to 8. */
const CONTROL_BYTES = 24;
const MSGHDR_BYTES = 56;

/** @returns the next descriptor that waits in the socket, now the caller's to close; undefined without one */
export function receiveDescriptor(socket: number): number | undefined {
  const message = new Uint8Array(1);
  const control = new DataView(new ArrayBuffer(CONTROL_BYTES));
  const iovec = BigUint64Array.of(addressOf(message), BigInt(message.length));
  // struct msghdr: name, name length, iov, iov count, control, control length, flags.
  const header = new DataView(new ArrayBuffer(MSGHDR_BYTES));
  header.setBigUint64(16, addressOf(iovec), true);
  header.setBigUint64(24, 1n, true);
  header.setBigUint64(32, addressOf(control), true);
  header.setBigUint64(40, BigInt(CONTROL_BYTES), true);
  // SAFETY: header, message, iovec and control are referenced by this frame until the call has returned.
  const got = libc().syscall(SYS_RECVMSG, socket, addressOf(header), MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  const isRights = control.getInt32(8, true) === SOL_SOCKET && control.getInt32(12, true) === SCM_RIGHTS;
  if (got.value <= 0 || header.getBigUint64(40, true) === 0n || !isRights) return undefined;
  return control.getInt32(16, true);
}
