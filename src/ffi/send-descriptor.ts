/**
 * Passing an open descriptor to another process along with a message on a unix socket (SCM_RIGHTS, unix(7)).
 */

import { CheckpointError } from '../errors.js';
import { addressOf, errnoName, libc } from './libc.js';

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_DONTWAIT = 0x40;
/** struct cmsghdr { u64 len; i32 level; i32 type; } and one i32, padded to 8. */
const CONTROL_BYTES = 24;
const CONTROL_USED_BYTES = 20;
const MSGHDR_BYTES = 56;

/**
 * Sends `message` whole, with `descriptor` attached.
 * @throws FFI_FAILED when the socket does not take all of it at once; small messages on an idle socket always
 *   go
 */
export function sendWithDescriptor(socket: number, message: Uint8Array, descriptor: number): void {
  const control = new DataView(new ArrayBuffer(CONTROL_BYTES));
  control.setBigUint64(0, BigInt(CONTROL_USED_BYTES), true);
  control.setInt32(8, SOL_SOCKET, true);
  control.setInt32(12, SCM_RIGHTS, true);
  control.setInt32(16, descriptor, true);
  const iovec = BigUint64Array.of(addressOf(message), BigInt(message.length));
  // struct msghdr: name, name length, iov, iov count, control, control length, flags.
  const header = new DataView(new ArrayBuffer(MSGHDR_BYTES));
  header.setBigUint64(16, addressOf(iovec), true);
  header.setBigUint64(24, 1n, true);
  header.setBigUint64(32, addressOf(control), true);
  header.setBigUint64(40, BigInt(CONTROL_BYTES), true);
  // SAFETY: message, iovec and control are referenced by this frame until the call has returned.
  const sent = libc().sendmsg(socket, new Uint8Array(header.buffer), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent.value !== message.length) {
    throw new CheckpointError(
      'FFI_FAILED',
      `passing a descriptor on a socket: ${sent.value < 0 ? errnoName(sent.errno) : `${sent.value} of ${message.length} bytes`}`,
    );
  }
}
