/** A checkpoint of a domain as a save image for `virsh restore`, or as QEMU's stream alone. */

import type { Writable } from 'node:stream';

import type { CheckpointSource } from '../../src/hypervisor/hypervisor.js';
import { exportCheckpoint as exportOfKvm, EXPORT_FORMATS as FORMATS_OF_KVM } from '../kvm/export.js';
import { pushStream } from '../kvm/stream/push.js';
import { recordedXml } from './domain-xml.js';
import { saveImageHead } from './save-image.js';

export const EXPORT_FORMATS: readonly string[] = ['libvirt', ...FORMATS_OF_KVM];

/**
 * Does not end the sink.
 * @returns bytes written
 * @throws USAGE, VM_UNSUPPORTED without domain XML, STREAM_MALFORMED, REPO_DAMAGED, INTERRUPTED, and the sink's own errors
 */
export async function exportDomain(
  source: CheckpointSource,
  format: string,
  sink: Writable,
  signal?: AbortSignal,
): Promise<number> {
  if (format !== 'libvirt') return exportOfKvm(source, format, sink, signal);
  const head = saveImageHead(recordedXml(source.machine));
  const headBytes = await pushStream(once(head), sink, signal);
  return headBytes + (await exportOfKvm(source, 'qemu', sink, signal));
}

// eslint-disable-next-line @typescript-eslint/require-await -- a stream of one piece
async function* once(piece: Uint8Array): AsyncGenerator<Uint8Array, void, void> {
  yield piece;
}
