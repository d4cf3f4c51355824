/** Who is at the other end of a connected Unix socket, as the kernel knows it: SO_PEERCRED of unix(7). */

import { CheckpointError } from '../errors.js';
import { errnoName, libc } from './libc.js';

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;

export interface PeerCredentials {
  /** 0 for a process of another process id namespace. */
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** Of the process that listens on the socket, when it began to. @throws FFI_FAILED, VM_UNSUPPORTED */
export function peerCredentials(descriptor: number): PeerCredentials {
  // struct ucred { i32 pid, u32 uid, u32 gid }
  const credentials = new Uint32Array(3);
  const got = libc().getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, new Uint8Array(credentials.buffer));
  if (got.value === 0) return { pid: credentials[0]! | 0, uid: credentials[1]!, gid: credentials[2]! };
  throw new CheckpointError('FFI_FAILED', `asking for the process behind a socket: ${errnoName(got.errno)}`);
}
