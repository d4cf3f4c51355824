/**
 * Compressed save images. libvirt decompresses with programs of these names, so this compresses with them.
 * Numbers: virQEMUSaveFormat of libvirt's qemu_saveimage.h.
 */

import type { Writable } from 'node:stream';

import { CheckpointError } from '../../../src/errors.js';
import { failureOf, startProgram } from '../../../src/host/run-program.js';
import { pushStream } from '../../qemu/stream/push.js';

export interface ImageCompression {
  readonly id: number;
  readonly program: string;
}

/** libvirt 9.0 knows the first four; zstd came later. */
export const IMAGE_COMPRESSIONS: readonly ImageCompression[] = [
  { id: 1, program: 'gzip' },
  { id: 2, program: 'bzip2' },
  { id: 3, program: 'xz' },
  { id: 4, program: 'lzop' },
  { id: 5, program: 'zstd' },
];

/** The program may stand still for this long while it has something to do; xz takes seconds for a block. */
const LIMIT_MS = 300_000;

/**
 * Does not end the sink.
 * @param fill writes what is to be compressed, and does not end its stream
 * @returns bytes after compression
 * @throws USAGE when the program is not installed, WORKER_FAILED when it fails, and what `fill` and the sink
 *   throw
 */
export async function compressInto(
  sink: Writable,
  { program }: ImageCompression,
  fill: (into: Writable) => Promise<unknown>,
): Promise<number> {
  const child = await startProgram(program, ['-c'], { limitMs: LIMIT_MS, stderr: 'inherit' });
  const written = pushStream(child.stdout as AsyncIterable<Uint8Array>, sink);
  const filled = fill(child.stdin).then(() => child.stdin.end());
  const outcomes = await Promise.allSettled(
    [written, filled].map((step) =>
      step.catch((error: unknown) => {
        child.kill();
        throw error;
      }),
    ),
  );
  const result = await child.ended;
  if (result.kind === 'missing') {
    throw new CheckpointError('USAGE', `${program}, which would compress the image, is not installed`, {
      hint: 'install it, or choose another format; the host that restores the image needs it too',
    });
  }
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed?.status === 'rejected' && result.kind !== 'late') throw failed.reason;
  if (result.kind === 'done') return written;
  throw new CheckpointError(
    'WORKER_FAILED',
    `${program}, which compresses the image: ${failureOf(program, result)}`,
  );
}
