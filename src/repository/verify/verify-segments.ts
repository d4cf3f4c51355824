/**
 * Verifies the index segments of a chain against the records that their entries lead to.
 *
 * A segment may outlive what it refers to: an entry that newer segments override in every checkpoint may lead
 * to a record that was forgotten. So what does not fit is set aside first, and is damage only where a
 * checkpoint's map has it:
 *
 *     segment 9 (newest)   page 5 -> record of pack 9        counts
 *     segment 3            page 5 -> record of pack 3        overridden: pack 3 may be gone
 */

import { regionOfPage, sameLayout, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import { MAX_SEGMENTS } from '../../format/index-policy.js';
import type { IndexEntries } from '../../format/index-slice.js';
import { manifestKey, type Manifest, type SegmentEntry } from '../../format/manifest.js';
import { packOfRef, ZERO_REF } from '../../format/record-ref.js';
import { PageIndex } from '../read/page-index.js';
import { SegmentShelf } from '../read/segment-reader.js';
import type { ProblemLog } from './problem-log.js';
import { BROKEN, type RecordTable } from './record-table.js';

export interface SegmentVerifierDeps {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly keys: ChainKeys;
  readonly problems: ProblemLog;
  /** Records of all packs that can be read, by the pack's number. */
  readonly tables: ReadonlyMap<number, RecordTable>;
  /** Layout of the checkpoint that wrote a pack, by the pack's number. */
  readonly layoutOfPack: ReadonlyMap<number, MemoryLayout>;
  readonly onBytes: (sizeBytes: number) => void;
}

/** A segment and the checkpoints that name it agree on the numbering of pages. */
interface ListedSegment {
  readonly entry: SegmentEntry;
  readonly manifest: Manifest;
}

export class SegmentVerifier {
  readonly #deps: SegmentVerifierDeps;
  readonly #call: CallOptions;
  readonly #segments = new Map<number, ListedSegment>();
  /** Entries that do not fit their records, by reference. */
  readonly #misfits = new Map<number, { readonly key: string; readonly error: unknown }>();

  constructor(deps: SegmentVerifierDeps, call: CallOptions) {
    this.#deps = deps;
    this.#call = call;
  }

  /**
   * Enters the segments that a manifest lists. Two manifests that disagree on one are told apart by the
   * object itself.
   */
  list(manifest: Manifest): void {
    const { problems } = this.#deps;
    const key = manifestKey(manifest);
    if (manifest.segments.length > MAX_SEGMENTS) problems.fail(key, 'too many index segments');
    for (const entry of manifest.segments) {
      const known = this.#segments.get(entry.seq);
      if (known === undefined) this.#segments.set(entry.seq, { entry, manifest });
      else if (
        known.entry.directorySha256 !== entry.directorySha256 ||
        !sameLayout(known.manifest.layout, manifest.layout)
      ) {
        problems.fail(key, `index segment ${entry.seq} differs from what an earlier checkpoint says of it`);
      }
    }
  }

  isListed(seq: number): boolean {
    return this.#segments.has(seq);
  }

  /** Reads every segment. @returns numbers of all packs that entries refer to */
  async read(): Promise<Set<number>> {
    const packs = new Set<number>();
    for (const segment of this.#segments.values()) {
      let last = 0;
      await this.#eachSlice(segment, true, ({ refs }) => {
        for (const ref of refs) {
          const pack = packOfRef(ref);
          if (pack !== last && ref !== ZERO_REF) packs.add((last = pack));
        }
      });
      this.#deps.onBytes(segment.entry.sizeBytes);
    }
    return packs;
  }

  /** Compares every entry with its record, and sets aside what does not fit. */
  async compare(): Promise<void> {
    for (const segment of this.#segments.values()) {
      const key = this.#deps.keys.segment(segment.entry.seq);
      await this.#eachSlice(segment, false, (entries) =>
        this.#compareEntries(key, entries, segment.manifest.layout),
      );
    }
  }

  /**
   * Reports what was set aside and counts in one of the checkpoints.
   * @param missing packs that entries refer to and that are not there, by number
   */
  async checkUsed(manifests: readonly Manifest[], missing: ReadonlyMap<number, unknown>): Promise<void> {
    if (missing.size === 0 && this.#misfits.size === 0) return;
    const { backend, repositoryId, keys, problems } = this.#deps;
    for (const manifest of manifests) {
      const check = async (): Promise<void> => {
        const index = await PageIndex.open({ backend, repositoryId }, manifest, this.#call);
        for await (const { refs } of index.windows(this.#call)) {
          for (const ref of refs) {
            if (ref === ZERO_REF) continue;
            const pack = missing.get(packOfRef(ref));
            if (pack !== undefined) problems.reportError(keys.pack(packOfRef(ref)), pack);
            const misfit = this.#misfits.get(ref);
            if (misfit !== undefined) problems.reportError(misfit.key, misfit.error);
          }
        }
      };
      await problems.attempt(manifestKey(manifest), check, false);
    }
  }

  #compareEntries(key: string, { pages, refs, depths }: IndexEntries, layout: MemoryLayout): void {
    const { tables, layoutOfPack } = this.#deps;
    for (let i = 0; i < pages.length; i++) {
      const ref = refs[i]!;
      if (ref === ZERO_REF) continue;
      const table = tables.get(packOfRef(ref));
      // The pack is missing or unreadable, which is reported already.
      if (table === undefined) continue;
      const at = table.find(ref);
      const depth = at === undefined ? 0 : table.depths[at]!;
      if (depth === BROKEN) continue;
      const from = layoutOfPack.get(packOfRef(ref));
      let what: string;
      if (at === undefined) what = 'refers to a record that the pack does not have';
      else if (depth !== depths[i]) what = 'depth differs from that of the record';
      else if (from !== undefined && !isSamePage(from, table.pages[at]!, layout, pages[i]!))
        what = 'refers to a record of another page';
      else continue;
      this.#misfits.set(ref, { key, error: damaged(key, what, { entry: i }) });
    }
  }

  /** Ends where the segment is damaged; that is reported the first time. */
  async #eachSlice(
    { entry, manifest }: ListedSegment,
    isFirst: boolean,
    visit: (entries: IndexEntries) => void,
  ): Promise<void> {
    const { backend, repositoryId, keys, problems } = this.#deps;
    const source = { backend, repositoryId, chain: keys.chain, pageSpan: manifest.layout.pageSpan };
    await problems.attempt(
      keys.segment(entry.seq),
      async () => {
        const segment = await new SegmentShelf(1).segment(source, entry, this.#call);
        for await (const entries of segment.slices(this.#call)) visit(entries);
      },
      isFirst,
    );
  }
}

/** The same place of the same region, in two numberings. */
function isSamePage(from: MemoryLayout, page: number, to: MemoryLayout, otherPage: number): boolean {
  const region = regionOfPage(from, page);
  const other = regionOfPage(to, otherPage);
  if (region === undefined || other === undefined) return false;
  return region.id === other.id && page - region.firstPage === otherPage - other.firstPage;
}
