/**
 * A checkpoint out of a file of the hypervisor's own tools (`xl save`, `virsh save`, a migration of QEMU):
 * unpacked into a sparse file, and then taken like a checkpoint of a VM that stands still.
 */

import { mkdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { tmpdir } from 'node:os';

import { CheckpointSession, type SessionOptions } from '../checkpoint/session.js';
import type { CheckpointSummary } from '../checkpoint/summary.js';
import { CheckpointError, isCheckpointError } from '../errors.js';
import { makeWorkFolder } from '../host/work-folder.js';
import { HeadedBytes, type ByteSource } from '../hypervisor/byte-source.js';
import { RECOGNITION_BYTES, type ImportedMachine } from '../hypervisor/intake.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { Repository } from '../repository/repository.js';
import { FileBytes } from './file-bytes.js';
import { ImageVm } from './image-vm.js';
import { MemoryFile } from './memory-file.js';

export interface ImportOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  /** A format among the `importFormats` of the hypervisors; default: what the beginning of the file says. */
  readonly format?: string | undefined;
  /** A file, or a pipe, which some files cannot be read from: those in which memory lies at fixed places. */
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
 * @throws USAGE for an unknown format, a file that is not there, or a program that would unpack it and is not
 *   there, STREAM_MALFORMED, STORAGE_FULL, VM_UNSUPPORTED for a machine that could not be restored,
 *   CHAIN_WRONG_VM, and what a checkpoint throws
 */
export async function importCheckpoint(options: ImportOptions): Promise<CheckpointSummary> {
  const { path } = options;
  if (options.format !== undefined) options.hypervisors.importing(options.format);
  const work = await makeWorkFolder(options.tempDir ?? tmpdir(), 'import');
  let memory: MemoryFile | undefined;
  try {
    const image = await named(path, () =>
      readFile(options, (layout) => (memory = new MemoryFile(layout, join(work, 'memory')))),
    );
    if (memory === undefined) throw new RangeError('an import that has placed no memory');
    const vm = new ImageVm(`import:${resolve(path)}`, image, memory);
    const session = await openImageSession(vm, work, options);
    try {
      const summary = await session.checkpoint();
      return { ...summary, warnings: [...summary.warnings, ...(image.warnings ?? [])] };
    } finally {
      await session.close();
    }
  } finally {
    memory?.close();
    await rm(work, { recursive: true, force: true });
  }
}

/** @throws USAGE, STREAM_MALFORMED, VM_UNSUPPORTED, STORAGE_FULL */
async function readFile(
  { hypervisors, format: claimed, path, signal }: ImportOptions,
  place: (layout: MemoryLayout) => MemoryFile,
): Promise<ImportedMachine> {
  const files = [new FileBytes(path, signal)];
  try {
    const isPipe = await files[0]!.isPipe();
    const first = new HeadedBytes(files[0]!);
    const format = hypervisors.formatOf(await first.peek(RECOGNITION_BYTES), claimed);
    let memory: MemoryFile | undefined;
    let unread: ByteSource | undefined = first;
    const image = await hypervisors.importing(format).importFrom({
      format,
      signal,
      open: () => {
        const source = unread ?? again(path, isPipe, signal);
        unread = undefined;
        if (source instanceof FileBytes) files.push(source);
        return source;
      },
      place: (layout) => (memory = place(layout)),
    });
    if (memory === undefined) throw new CheckpointError('STREAM_MALFORMED', 'there is no memory in it');
    memory.checkFilled();
    return image;
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}

function again(path: string, isPipe: boolean, signal: AbortSignal | undefined): FileBytes {
  if (!isPipe) return new FileBytes(path, signal);
  throw new CheckpointError('USAGE', `${path} is a pipe, and what comes out of it has to be read twice`, {
    hint: 'write it into a file and import that',
  });
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
