/** What the repository gives back for one checkpoint after the other, held against the truth over all memory. */

import { Repository, openStorage, type Manifest } from '../../../src/index.js';
import { sameLayout } from '../../../src/hypervisor/memory-layout.js';
import type { CheckpointReader } from '../../../src/repository/read/checkpoint-reader.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { differingPages } from './ground-truth.js';
import { columnsOf } from '../../support/map-columns.js';

const PAGES_A_READ = 2048;

/** One checkpoint, whole. */
interface Image {
  readonly layout: Manifest['layout'];
  /** Where each page lies in the repository. */
  readonly refs: Float64Array;
  readonly regions: ReadonlyMap<string, Buffer>;
  /** Opened for the last checkpoint that was read whole. */
  readonly reader: CheckpointReader;
}

/**
 * Of a page whose record is the one that the checkpoint before named, too, it keeps the bytes that it was given then; all others
 * are read. Everything is read, by a reader that has read nothing yet, when that is asked for and the first time.
 */
export class StoredMemory {
  readonly #repo: string;
  #repository: Repository | undefined;
  #image: Image | undefined;

  constructor(repo: string) {
    this.#repo = repo;
  }

  /**
   * @param truth region name -> contents
   * @returns the first pages that differ, as "region page"; empty when every byte of all regions is equal. Throws when the reader
   * leaves a page out or gives one twice
   */
  async differing(
    truth: ReadonlyMap<string, Buffer>,
    checkpointId: string,
    isWhole: boolean,
  ): Promise<readonly string[]> {
    const before = this.#image;
    this.#image = undefined;
    if (isWhole || this.#repository === undefined) {
      await this.close();
      this.#repository = await Repository.open(await openStorage(this.#repo));
    }
    const repository = this.#repository;
    const manifest = await repository.find(checkpointId);
    const reader = repository.reader(manifest);
    const { layout } = manifest;
    const { refs } = columnsOf(await repository.loadMap(manifest));
    if (isWhole || before === undefined || !sameLayout(before.layout, layout))
      this.#image = { layout, refs, regions: await allPages(reader, before?.regions), reader };
    else {
      await changedPages(before, refs);
      this.#image = { ...before, refs };
    }
    return differingPages(new Map(truth), new Map(this.#image.regions));
  }

  async close(): Promise<void> {
    await this.#repository?.close();
    this.#repository = undefined;
  }
}

async function allPages(
  reader: CheckpointReader,
  old: ReadonlyMap<string, Buffer> | undefined,
): Promise<ReadonlyMap<string, Buffer>> {
  const { regions } = reader.layout;
  const all = new Map<string, Buffer>();
  const chunks = reader.pages();
  for (const { id, firstPage, pageCount, sizeBytes } of regions) {
    const before = old?.get(id);
    const contents = before?.length === sizeBytes ? before : Buffer.alloc(sizeBytes);
    all.set(id, contents);
    for (let next = firstPage; next < firstPage + pageCount;) {
      const result = await chunks.next();
      if (result.done === true || result.value.firstPage !== next)
        throw new Error(`page ${next} of ${id} does not come in its turn`);
      const chunk = result.value;
      const from = (next - firstPage) * PAGE_SIZE_BYTES;
      if (chunk.bytes === null) contents.fill(0, from, from + chunk.pageCount * PAGE_SIZE_BYTES);
      else contents.set(chunk.bytes, from);
      next += chunk.pageCount;
    }
  }
  if ((await chunks.next()).done !== true) throw new Error('the reader gives more pages than there are');
  return all;
}

/** Into the regions of `before`. */
async function changedPages(before: Image, refs: Float64Array): Promise<void> {
  const bytes = Buffer.alloc(PAGES_A_READ * PAGE_SIZE_BYTES);
  for (const { id, firstPage, pageCount } of before.layout.regions) {
    const contents = before.regions.get(id)!;
    const changed: number[] = [];
    for (let page = firstPage; page < firstPage + pageCount; page++)
      if (refs[page] !== before.refs[page]) changed.push(page);
    for (let from = 0; from < changed.length; from += PAGES_A_READ) {
      const pages = changed.slice(from, from + PAGES_A_READ);
      await before.reader.readPagesByRef(
        Float64Array.from(pages, (page) => refs[page]!),
        bytes.subarray(0, pages.length * PAGE_SIZE_BYTES),
      );
      pages.forEach((page, i) =>
        bytes.copy(
          contents,
          (page - firstPage) * PAGE_SIZE_BYTES,
          i * PAGE_SIZE_BYTES,
          (i + 1) * PAGE_SIZE_BYTES,
        ),
      );
    }
  }
}
