/** Giving a checkpoint to Xen's own tools as a file. */

import type { Writable } from 'node:stream';

import { CheckpointError } from '../../src/errors.js';
import type { CheckpointSource } from '../../src/hypervisor/restore.js';
import { pushStream } from '../qemu/stream/push.js';
import { EXPORT_FORMATS } from './formats.js';
import { saveContentOf } from './stream/save-file.js';
import { writeSaveFile } from './stream/writer.js';

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
    throw new CheckpointError('USAGE', `no export format "${format}" for Xen`, {
      hint: `known: ${EXPORT_FORMATS.join(', ')}`,
    });
  }
  try {
    const content = await saveContentOf(source, (config) => config, signal);
    return await pushStream(writeSaveFile(content), sink, signal);
  } catch (error) {
    if (signal?.aborted !== true) throw error;
    throw new CheckpointError('INTERRUPTED', `exporting ${source.checkpointId} was interrupted`, {
      cause: error,
    });
  }
}
