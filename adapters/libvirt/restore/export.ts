/** A checkpoint of a domain as a save image for `virsh restore`, or as QEMU's stream alone. */

import type { Writable } from 'node:stream';

import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import { exportCheckpoint as exportOfKvm } from '../../kvm/export.js';
import { pushStream } from '../../qemu/stream/push.js';
import { SAVE_IMAGE } from '../formats.js';
import { compressInto, IMAGE_COMPRESSIONS } from './compression.js';
import { recordedXml } from '../xml/domain-xml.js';
import { saveImageHead } from '../save-image.js';

/**
 * Does not end the sink.
 * @returns bytes written
 * @throws USAGE, VM_UNSUPPORTED without domain XML, STREAM_MALFORMED, REPO_DAMAGED, INTERRUPTED, and the
 *   sink's own errors
 */
export async function exportDomain(
  source: CheckpointSource,
  format: string,
  sink: Writable,
  signal?: AbortSignal,
): Promise<number> {
  const compression = IMAGE_COMPRESSIONS.find(({ program }) => format === `${SAVE_IMAGE}+${program}`);
  if (format !== SAVE_IMAGE && compression === undefined) return exportOfKvm(source, format, sink, signal);
  const head = saveImageHead(recordedXml(source.machine, source.checkpointId), compression?.id);
  const headBytes = await pushStream(once(head), sink, signal);
  const stream = (into: Writable): Promise<number> => exportOfKvm(source, 'qemu', into, signal);
  const bytes = compression === undefined ? stream(sink) : compressInto(sink, compression, stream);
  return headBytes + (await bytes);
}

// eslint-disable-next-line @typescript-eslint/require-await -- a stream of one piece
async function* once(piece: Uint8Array): AsyncGenerator<Uint8Array, void, void> {
  yield piece;
}
