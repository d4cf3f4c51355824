/**
 * Unpacks a compressed stream while it is read: nothing of it lies on a disk, and no more in memory than a
 * few buffers, whatever it comes to.
 *
 *     source --> gunzip of Node.js, or a program --> read
 */

import type { Readable, Writable } from 'node:stream';
import { createGunzip } from 'node:zlib';

import { CheckpointError, describeError } from '../../../src/errors.js';
import { failureOf, startProgram } from '../../../src/host/run-program.js';
import type { ByteSource } from '../../../src/hypervisor/byte-source.js';
import { pushStream } from '../stream/push.js';
import type { Compression } from './compressions.js';

/** The program may stand still for this long while it has something to do; xz takes seconds for a block. */
const LIMIT_MS = 300_000;
const GUNZIP_CHUNK_BYTES = 256 * 1024;

interface Unpacker {
  readonly input: Writable;
  readonly output: Readable;
  /** What went wrong, undefined when nothing did. Never rejects. */
  readonly ended: Promise<CheckpointError | undefined>;
  readonly stop: () => void;
}

/**
 * @param read reads what is unpacked to its end. What it throws is thrown, unless it saw the end only because
 *   the unpacking failed
 * @throws STREAM_MALFORMED for what is no such compression, or not whole, USAGE when the program is not
 *   installed, WORKER_FAILED when it stands still, INTERRUPTED, and what the source and `read` throw
 */
export async function unpacked<T>(
  source: ByteSource,
  compression: Compression,
  signal: AbortSignal | undefined,
  read: (bytes: ByteSource) => Promise<T>,
): Promise<T> {
  const { input, output, ended, stop } = await start(compression, signal);
  let ofSource: { readonly error: unknown } | undefined;
  async function* watched(): AsyncGenerator<Uint8Array, void, void> {
    try {
      yield* source;
    } catch (error) {
      ofSource = { error };
      throw error;
    }
  }
  // When the receiver has gone, how it went says more.
  const fed = pushStream(watched(), input)
    .catch(() => 0)
    .finally(() => input.end());
  const [outcome] = await Promise.allSettled([read(output as AsyncIterable<Uint8Array>)]);
  const isUnread = !output.readableEnded && output.errored === null;
  if (isUnread) stop();
  await fed;
  const failure = await ended;
  signal?.throwIfAborted();
  if (ofSource !== undefined) throw ofSource.error;
  if (failure !== undefined && !isUnread) throw failure;
  if (outcome.status === 'rejected') throw outcome.reason;
  return outcome.value;
}

function start(compression: Compression, signal: AbortSignal | undefined): Unpacker | Promise<Unpacker> {
  const { name, args } = compression;
  return args === undefined ? startGunzip(name) : startUnpacking(compression, args, signal);
}

function startGunzip(name: string): Unpacker {
  const gunzip = createGunzip({ chunkSize: GUNZIP_CHUNK_BYTES });
  const ended = new Promise<CheckpointError | undefined>((resolve) => {
    gunzip.once('error', (error) => resolve(malformed(name, describeError(error), error)));
    gunzip.once('close', () => resolve(undefined));
  });
  return { input: gunzip, output: gunzip, ended, stop: () => gunzip.destroy() };
}

async function startUnpacking(
  { name, packageName }: Compression,
  args: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Unpacker> {
  const program = await startProgram(name, args, { limitMs: LIMIT_MS, signal });
  const ended = program.ended.then((result) => {
    switch (result.kind) {
      case 'done':
        return undefined;
      case 'failed':
        return malformed(name, result.text);
      case 'missing':
        return new CheckpointError('USAGE', `${name}, which would unpack the file, is not installed`, {
          hint: `install it (package ${packageName}), or unpack the file elsewhere`,
        });
      case 'late':
      case 'interrupted':
        return new CheckpointError('WORKER_FAILED', `unpacking: ${failureOf(name, result)}`);
    }
  });
  return { input: program.stdin, output: program.stdout, ended, stop: program.kill };
}

function malformed(name: string, why: string, cause?: unknown): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `${name} cannot unpack it: ${why}`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'the file is cut off or damaged: have the hypervisor write it once more',
  });
}
