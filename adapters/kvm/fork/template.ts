/**
 * The memory that all children of a fork share: one file in memory for each RAM block, filled once, then
 * sealed. A child has it mapped privately, so that the kernel copies what the child writes, page by page.
 * Sealed, because a guest that gives memory back (balloon, free page reporting) would otherwise punch holes
 * into the file under its siblings.
 *
 *     repository --verified--> file --seal--> child 0: mapped, its own pages
 *                                       |---> child 1
 *                                       `---> ...            gone with the last process that has it
 */

import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, writeSync } from 'node:fs';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import { createMemoryFile, sealMemoryFile } from '../../../src/ffi/memory-file.js';
import { regionOfPage, type MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { CheckpointSource, PageChunk } from '../../../src/hypervisor/restore.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { templateName } from '../memory/sealed-template.js';
import type { TemplateBlock } from './child-options.js';

export class MemoryTemplate {
  /** Of its files, unlike that of any other template. */
  readonly name = templateName(randomBytes(16).toString('hex'));
  readonly #blocks: readonly TemplateBlock[];
  readonly #descriptors = new Map<string, number>();

  constructor(blocks: readonly TemplateBlock[]) {
    this.#blocks = blocks;
  }

  /** In the order of the blocks. */
  get descriptors(): readonly number[] {
    return this.#blocks.flatMap(({ id }) => this.#descriptors.get(id) ?? []);
  }

  has(regionId: string): boolean {
    return this.#blocks.some(({ id }) => id === regionId);
  }

  /**
   * All pages of the source as they come, those of its blocks written on the way.
   * @throws REPO_DAMAGED and what else the source throws, STORAGE_FULL, FFI_FAILED
   */
  async *fill(source: CheckpointSource, signal: AbortSignal | undefined): AsyncGenerator<PageChunk> {
    for (const { id, sizeBytes } of this.#blocks) {
      const descriptor = createMemoryFile(this.name, { canBeSealed: true });
      this.#descriptors.set(id, descriptor);
      ftruncateSync(descriptor, sizeBytes);
    }
    for await (const chunk of source.pagesAsStored(signal)) {
      this.#write(source.layout, chunk);
      yield chunk;
    }
  }

  /** Once all of it was read. From here on nobody changes it. @throws FFI_FAILED */
  seal(): void {
    for (const descriptor of this.#descriptors.values()) sealMemoryFile(descriptor);
  }

  /** This process lets go of it. */
  close(): void {
    for (const descriptor of this.#descriptors.values()) closeSync(descriptor);
    this.#descriptors.clear();
  }

  /** Fresh memory is zero. */
  #write(layout: MemoryLayout, { firstPage, bytes }: PageChunk): void {
    if (bytes === null) return;
    const region = regionOfPage(layout, firstPage);
    const descriptor = region === undefined ? undefined : this.#descriptors.get(region.id);
    if (region === undefined || descriptor === undefined) return;
    const at = (firstPage - region.firstPage) * PAGE_SIZE_BYTES;
    try {
      for (let done = 0; done < bytes.length;)
        done += writeSync(descriptor, bytes, done, bytes.length - done, at + done);
    } catch (cause) {
      const isFull = ['ENOSPC', 'ENOMEM'].includes(systemErrorCode(cause) ?? '');
      throw new CheckpointError(
        isFull ? 'STORAGE_FULL' : 'RESTORE_FAILED',
        `making the memory that the children share: ${describeError(cause)}`,
        { cause, hint: 'it takes as much memory of this host as the guest has that is not zero' },
      );
    }
  }
}
