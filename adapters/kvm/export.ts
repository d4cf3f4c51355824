/** Giving a checkpoint to stock QEMU as a file. */

import type { Writable } from 'node:stream';

import { CheckpointError } from '../../src/errors.js';
import type { CheckpointSource } from '../../src/hypervisor/restore.js';
import { deviceSections } from '../qemu/stream/device-state.js';
import { EXPORT_FORMATS } from './formats.js';
import { pushStream } from '../qemu/stream/push.js';
import { writeMigrationStream } from '../qemu/stream/writer.js';

/**
 * Does not end the sink.
 * @returns bytes written
 * @throws USAGE for another format, STREAM_MALFORMED, REPO_DAMAGED, INTERRUPTED, and the sink's own errors
 */
export async function exportCheckpoint(
  source: CheckpointSource,
  format: string,
  sink: Writable,
  signal?: AbortSignal,
): Promise<number> {
  if (!EXPORT_FORMATS.includes(format)) {
    throw new CheckpointError('USAGE', `no export format "${format}" for QEMU`, {
      hint: `known: ${EXPORT_FORMATS.join(', ')}`,
    });
  }
  const content = {
    machineType: source.machineType,
    layout: source.layout,
    deviceSections: deviceSections(await source.deviceState()),
    pages: (pagesSignal?: AbortSignal) => source.pagesAsStored(pagesSignal),
  };
  try {
    // All zero pages stay in: nobody knows what the memory of the loading QEMU holds.
    return await pushStream(
      writeMigrationStream(content, signal === undefined ? {} : { signal }),
      sink,
      signal,
    );
  } catch (error) {
    if (signal?.aborted !== true) throw error;
    throw new CheckpointError('INTERRUPTED', `exporting ${source.checkpointId} was interrupted`, {
      cause: error,
    });
  }
}
