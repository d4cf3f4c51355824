/**
 * A checkpoint out of a file of the hypervisor's own tools (`xl save`, a migration of QEMU): unpacked into a
 * sparse file, and then taken like a checkpoint of a VM that stands still.
 */

import { createReadStream } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { tmpdir } from 'node:os';

import { CheckpointSession, type SessionOptions } from '../checkpoint/session.js';
import type { CheckpointSummary } from '../checkpoint/summary.js';
import { CheckpointError, isCheckpointError, systemErrorCode } from '../errors.js';
import { makeWorkFolder } from '../host/work-folder.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { Repository } from '../repository/repository.js';
import { ImageVm } from './image-vm.js';
import { MemoryFile } from './memory-file.js';

export interface ImportOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  /** A format among the `importFormats` of the hypervisors. */
  readonly format: string;
  readonly path: string;
  /** Name of the chain; default: what the file calls the VM. */
  readonly name?: string | undefined;
  /**
   * Where memory is unpacked, as large as the guest uses; default: the system's folder for temporary files.
   */
  readonly tempDir?: string | undefined;
  readonly compressionLevel?: number | undefined;
  readonly workers?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The first checkpoint of a chain, or one more of it: then it is compared with the last one.
 * @throws USAGE for an unknown format or a file that is not there, STREAM_MALFORMED, STORAGE_FULL,
 *   VM_UNSUPPORTED for a machine that could not be restored, CHAIN_WRONG_VM, and what a checkpoint throws
 */
export async function importCheckpoint(options: ImportOptions): Promise<CheckpointSummary> {
  const { format, path, signal } = options;
  const hypervisor = options.hypervisors.importing(format);
  const work = await makeWorkFolder(options.tempDir ?? tmpdir(), 'import');
  let memory: MemoryFile | undefined;
  try {
    const { image, unpacked } = await named(path, async () => {
      const read = await hypervisor.importFrom!({
        format,
        open: () => chunksOf(path, signal),
        place: (layout) => (memory = new MemoryFile(layout, join(work, 'memory'))),
      });
      if (memory === undefined) throw new CheckpointError('STREAM_MALFORMED', 'there is no memory in it');
      memory.checkFilled();
      return { image: read, unpacked: memory };
    });
    const vm = new ImageVm(`import:${resolve(path)}`, image, unpacked);
    const session = await openImageSession(vm, work, options);
    try {
      return await session.checkpoint();
    } finally {
      await session.close();
    }
  } finally {
    memory?.close();
    await rm(work, { recursive: true, force: true });
  }
}

/** A session on a machine whose memory is unpacked in `work`. @throws see `CheckpointSession.open` */
export async function openImageSession(
  vm: ImageVm,
  work: string,
  options: Pick<SessionOptions, 'repository' | 'name' | 'compressionLevel' | 'workers' | 'signal'>,
): Promise<CheckpointSession> {
  const { repository, name, compressionLevel, workers, signal } = options;
  const runtimeDir = join(work, 'runtime');
  await mkdir(runtimeDir, { mode: 0o700 });
  return CheckpointSession.open(vm, {
    repository,
    name,
    compressionLevel,
    workers,
    memoryOnly: true,
    runtimeDir,
    signal,
  });
}

/** Says of which file something is wrong. */
async function named<T>(path: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    if (!isCheckpointError(error, 'STREAM_MALFORMED')) throw error;
    throw new CheckpointError('STREAM_MALFORMED', `${path}: ${error.message}`, {
      cause: error,
      hint: error.hint ?? 'is it whole, and of this --format? if so, have the hypervisor write it once more',
    });
  }
}

async function* chunksOf(path: string, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
      signal?.throwIfAborted();
      yield chunk as Buffer;
    }
  } catch (cause) {
    if (!['ENOENT', 'EACCES', 'EISDIR'].includes(systemErrorCode(cause) ?? '')) throw cause;
    throw new CheckpointError('USAGE', `${path} cannot be read: ${systemErrorCode(cause) ?? ''}`, { cause });
  }
}
