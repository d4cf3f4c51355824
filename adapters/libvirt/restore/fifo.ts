/**
 * A private FIFO through which libvirt reads an image while it is being made: no copy of guest memory on any
 * disk.
 */

import { constants, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import { failureOf, runProgram } from '../../../src/host/run-program.js';

const POLL_MS = 5;
const MKFIFO_LIMIT_MS = 10_000;

/** mkfifo(1), which is in every coreutils; Node.js has no call for it. @throws RESTORE_FAILED */
export async function makeFifo(path: string): Promise<void> {
  const made = await runProgram('mkfifo', ['-m', '0600', path], { limitMs: MKFIFO_LIMIT_MS });
  if (made.kind === 'done') return;
  throw new CheckpointError('RESTORE_FAILED', `making ${path}: ${failureOf('mkfifo', made, 'coreutils')}`, {
    hint: 'the runtime folder must be on a file system with FIFOs; name another one with CAIRN_RUNTIME_DIR',
  });
}

/**
 * The write end, once somebody has opened the other.
 * @param isOver true when nobody will come any more
 * @returns undefined when it is over before anybody came
 */
export async function openForReader(
  path: string,
  isOver: () => boolean,
  signal?: AbortSignal,
): Promise<Socket | undefined> {
  for (;;) {
    signal?.throwIfAborted();
    if (isOver()) return undefined;
    try {
      // Without a reader a blocking open would hold a thread for ever.
      const fd = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
      const socket = new Socket({ fd, readable: false, writable: true });
      // Whoever writes listens too; between writes an error must not end the process.
      socket.on('error', () => undefined);
      return socket;
    } catch (error) {
      if (systemErrorCode(error) !== 'ENXIO') throw error;
    }
    await delay(POLL_MS);
  }
}
