/**
 * A pair of connected unix stream sockets (socketpair(2)), for a byte stream from another process that gets
 * one end.
 */

import { CheckpointError } from '../errors.js';
import { addressOf, errnoName, libc } from './libc.js';

const SYS_SHUTDOWN = 48;
const SYS_SOCKETPAIR = 53;
const SYS_SETSOCKOPT = 54;
const AF_UNIX = 1;
const SOCK_STREAM_CLOEXEC = 0o2000001;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SHUT_RDWR = 2;

export interface SocketPair {
  readonly ours: number;
  readonly theirs: number;
}

/**
 * Caller closes both ends. Reading `ours` blocks, but not for longer than `receiveTimeoutMs`: then it fails
 * with EAGAIN. 0 is no limit.
 * @throws FFI_FAILED
 */
export function openSocketPair(receiveTimeoutMs: number): SocketPair {
  const ends = new Int32Array(2);
  const made = libc().syscall(SYS_SOCKETPAIR, AF_UNIX, SOCK_STREAM_CLOEXEC, 0, addressOf(ends));
  if (made.value !== 0)
    throw new CheckpointError('FFI_FAILED', `making a pair of sockets: ${errnoName(made.errno)}`);
  const pair = { ours: ends[0]!, theirs: ends[1]! };
  // struct timeval { i64 seconds, i64 microseconds }
  const limit = BigInt64Array.of(
    BigInt(Math.floor(receiveTimeoutMs / 1000)),
    BigInt((receiveTimeoutMs % 1000) * 1000),
  );
  const set = libc().syscall(
    SYS_SETSOCKOPT,
    pair.ours,
    SOL_SOCKET,
    SO_RCVTIMEO,
    addressOf(limit),
    limit.byteLength,
  );
  if (set.value !== 0)
    throw new CheckpointError('FFI_FAILED', `setting a time limit on a socket: ${errnoName(set.errno)}`);
  return pair;
}

/**
 * Ends the connection in both directions: who reads sees the end, who writes an error. The descriptor stays
 * open.
 */
export function shutDownSocket(descriptor: number): void {
  libc().syscall(SYS_SHUTDOWN, descriptor, SHUT_RDWR);
}
