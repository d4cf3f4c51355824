/**
 * Tells systemd how a service is (sd_notify(3)): one datagram to the socket of $NOTIFY_SOCKET. Node.js has no Unix datagrams, and
 * the program systemd-notify is a process of its own, which Type=notify with NotifyAccess=main does not listen to.
 */

import { closeSync } from 'node:fs';

import { addressOf, libc } from './libc.js';

const SYS_SOCKET = 41;
const SYS_SENDTO = 44;
const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 0o2000002;
const MSG_NOSIGNAL = 0x4000;
/** sockaddr_un: u16 family, then the path. */
const PATH_AT = 2;

/**
 * A service that cannot be heard goes on.
 * @param text such as READY=1; several with line breaks
 * @returns whether it was sent; false without a socket
 */
export function notifyService(text: string, socket = process.env.NOTIFY_SOCKET): boolean {
  if (socket === undefined || !/^[/@]/.test(socket)) return false;
  const path = Buffer.from(socket);
  const address = Buffer.alloc(PATH_AT + path.length);
  address.writeUInt16LE(AF_UNIX);
  path.copy(address, PATH_AT);
  // The name of an abstract socket begins with a zero byte, and ends with its length.
  if (socket.startsWith('@')) address[PATH_AT] = 0;
  const message = Buffer.from(text);
  const descriptor = libc().syscall(SYS_SOCKET, AF_UNIX, SOCK_DGRAM_CLOEXEC).value;
  if (descriptor < 0) return false;
  try {
    // SAFETY: both buffers live until the call has returned, and the kernel copies them in it.
    const sent = libc().syscall(
      SYS_SENDTO,
      descriptor,
      addressOf(message),
      message.length,
      MSG_NOSIGNAL,
      addressOf(address),
      address.length,
    );
    return sent.value === message.length;
  } finally {
    closeSync(descriptor);
  }
}
