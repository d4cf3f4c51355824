/** Reads one migration stream into the staging file. */

import { readSync } from 'node:fs';

import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { readMigrationStream, type RamBlock } from '../../../qemu/stream/reader.js';
import { viewsOf, type ReceivedStream, type ReceiverSetup } from './receiver-messages.js';
import { hasBit, setBit, StagingWriter } from './staging-writer.js';

const CHUNK_BYTES = 1 << 20;

/**
 * @param chunks of the stream, each valid until the next is asked for
 * @throws STREAM_MALFORMED, VM_UNSUPPORTED when the stream's memory is not that of the layout, TRACKER_FAILED
 */
export async function receiveStream(
  chunks: AsyncIterable<Uint8Array>,
  { staging, layout, shared, allowMissing }: ReceiverSetup,
): Promise<ReceivedStream> {
  const views = viewsOf(shared, layout.pageSpan);
  const seen = new Uint32Array(layout.pageSpan / 32);
  const writer = new StagingWriter(staging, views);
  const regions = new Map(layout.regions.map((region) => [region.id, region]));
  let lastId = '';
  let firstPage = 0;
  views.counters.fill(0);
  const stream = await readMigrationStream(chunks, {
    onBlocks: (blocks) => {
      const same =
        blocks.length === regions.size &&
        blocks.every(({ id, sizeBytes }) => regions.get(id)?.sizeBytes === sizeBytes);
      if (!same) throw otherMemory(blocks, [...regions.values()]);
    },
    onPage: (block, pageOfBlock, bytes) => {
      if (block.id !== lastId) {
        lastId = block.id;
        firstPage = regions.get(block.id)!.firstPage;
      }
      const page = firstPage + pageOfBlock;
      setBit(seen, page);
      views.counters[0]!++;
      if (bytes !== null) views.counters[1]!++;
      writer.put(page, bytes);
    },
  });
  writer.flush();
  let missingPages = 0;
  for (const region of layout.regions)
    for (let page = region.firstPage; page < region.firstPage + region.pageCount; page++)
      if (!hasBit(seen, page)) missingPages++;
  if (missingPages > 0 && !allowMissing) {
    throw new CheckpointError('TRACKER_FAILED', `the stream of memory lacks ${missingPages} pages`, {
      detail: { missingPages },
    });
  }
  // A copy of its own: it goes to another thread.
  return { deviceBytes: new Uint8Array(stream.deviceBytes), machineType: stream.machineType, missingPages };
}

/** The bytes of a blocking socket whose reads give up from time to time, so that this thread can be ended. */
// eslint-disable-next-line @typescript-eslint/require-await -- the reader of streams takes an async iterable
export async function* socketChunks(socket: number): AsyncGenerator<Uint8Array> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  for (;;) {
    const length = readOrRetry(socket, chunk);
    if (length === 0) return;
    yield chunk.subarray(0, length);
  }
}

function readOrRetry(socket: number, into: Uint8Array): number {
  for (;;) {
    try {
      return readSync(socket, into);
    } catch (error) {
      const code = systemErrorCode(error);
      if (code === 'EAGAIN' || code === 'EINTR') continue;
      if (code === 'ECONNRESET') return 0;
      throw new CheckpointError('TRACKER_FAILED', `reading the stream of QEMU: ${describeError(error)}`, {
        cause: error,
      });
    }
  }
}

function otherMemory(blocks: readonly RamBlock[], expected: readonly RamBlock[]): CheckpointError {
  const text = (list: readonly RamBlock[]): string =>
    list.map(({ id, sizeBytes }) => `${id} ${sizeBytes}`).join(', ');
  return new CheckpointError('VM_UNSUPPORTED', 'QEMU sends other memory than it lists', {
    hint: 'memory may have been added or removed just now: try again',
    retryable: true,
    detail: { sent: text(blocks), listed: text(expected) },
  });
}
