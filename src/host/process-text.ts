/**
 * Files of /proc whose length the process itself decides: where its arguments and its environment begin and end is its
 * own to say (PR_SET_MM of prctl(2)), and so they may be as long as its memory.
 */

import { open } from 'node:fs/promises';

import { CheckpointError } from '../errors.js';

/** The kernel takes 6 MiB of both together when it starts a program (execve(2)). */
const MAX_BYTES = 8 << 20;
const FIRST_BYTES = 64 << 10;

/**
 * @param path such as /proc/PID/cmdline
 * @throws VM_UNSUPPORTED when it is longer than any program is started with; the system's error
 */
export async function readProcessText(path: string): Promise<string> {
  const file = await open(path, 'r');
  try {
    let bytes = Buffer.alloc(FIRST_BYTES);
    let length = 0;
    for (;;) {
      if (length === bytes.length) bytes = Buffer.concat([bytes, Buffer.alloc(bytes.length)]);
      const { bytesRead } = await file.read(bytes, length, bytes.length - length, length);
      if (bytesRead === 0) return bytes.toString('utf8', 0, length);
      length += bytesRead;
      if (length > MAX_BYTES) throw tooLong(path);
    }
  } finally {
    await file.close();
  }
}

function tooLong(path: string): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', `${path} is longer than ${MAX_BYTES >> 20} MiB`, {
    hint: 'no program is started with that much: the process has changed it since, and is not to be trusted',
  });
}
