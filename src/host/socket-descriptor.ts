import type { Socket } from 'node:net';

/** The kernel's number of a connected socket, which Node.js keeps in its handle. */
export function descriptorOf(socket: Socket): number {
  const handle = (socket as unknown as { _handle?: { fd?: unknown } | null })._handle;
  return typeof handle?.fd === 'number' ? handle.fd : -1;
}
