/**
 * Decoded frames of a chain: from the cache, or else read from their packs and decompressed a few at a time.
 *
 * A patch frame is compressed against pages that older records hold (docs/format.md, patch frames). Decoding
 * one reads those pages through the chain reader that owns this source, and so comes back here, at most
 * MAX_DELTA_DEPTH times:
 *
 *     framesOf -> patch frame -> readPages(its sources) -> framesOf -> patch frame -> ... -> whole pages
 */

import type { CallOptions } from '../../storage/backend.js';
import { Scratch } from '../../host/scratch.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { damaged } from '../../records/damage.js';
import { decodeFrameAsync, FRAME_KIND_PATCH, type PageRecords } from '../../format/frame.js';
import { readPatch, unpackPatch } from '../../format/patch-frame.js';
import { frameKey, MAX_DELTA_DEPTH } from '../../format/record-ref.js';
import { DecodeWindow } from './decode-window.js';
import { FrameCache } from './frame-cache.js';
import type { PackReader, StoredFrame } from './pack-reader.js';
import { groupByPack, spansOf, type FrameSpan, type WantedRecords } from './wanted-records.js';

/**
 * Packs opened before their turn: a page of a long chain has records in many. Each holds a descriptor or two
 * meanwhile.
 */
const OPENS_AHEAD = 8;

/** Options of a read that may be part of decoding a patch frame. */
export interface NestedOptions extends CallOptions {
  /** Patch frames that may still be met on the way down; MAX_DELTA_DEPTH outside of any. */
  readonly patches: number;
}

export interface FrameSourceDeps {
  readonly packs: PackReader;
  readonly cacheBytes: number;
  /** Reads the pages that a patch frame is held against, 4096 bytes a reference. */
  readonly readPages: (refs: Float64Array, into: Uint8Array, options: NestedOptions) => Promise<void>;
}

export class FrameSource {
  readonly #packs: PackReader;
  readonly #cache: FrameCache;
  readonly #readPages: FrameSourceDeps['readPages'];
  readonly #scratch = new Scratch();

  constructor({ packs, cacheBytes, readPages }: FrameSourceDeps) {
    this.#packs = packs;
    this.#cache = new FrameCache(cacheBytes);
    this.#readPages = readPages;
  }

  /**
   * One frame; shared with the cache, do not change it.
   * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
   */
  async frame(pack: number, frame: number, options: NestedOptions): Promise<PageRecords> {
    const key = frameKey(pack, frame);
    const cached = this.#cache.get(key);
    if (cached !== undefined) return cached;
    for await (const [, records] of this.#fetch([{ key, pack, frame, from: 0, to: 0 }], options))
      return records;
    throw damaged(this.#packs.keys.pack(pack), 'frame is missing', { frame });
  }

  /**
   * Each frame that `wanted` needs, with the part of `wanted` that lies in it; cached frames come first.
   * @throws as `frame`
   */
  async *framesOf(
    wanted: WantedRecords,
    options: NestedOptions,
  ): AsyncGenerator<readonly [FrameSpan, PageRecords]> {
    const missing: FrameSpan[] = [];
    for (const span of spansOf(wanted)) {
      const cached = this.#cache.get(span.key);
      if (cached !== undefined) yield [span, cached];
      else missing.push(span);
    }
    yield* this.#fetch(missing, options);
  }

  /**
   * Reads and decodes frames, a few of them at the same time, also of different packs.
   * @param spans in ascending order
   */
  async *#fetch(
    spans: readonly FrameSpan[],
    options: NestedOptions,
  ): AsyncGenerator<readonly [FrameSpan, PageRecords]> {
    const window = new DecodeWindow<FrameSpan, PageRecords>();
    const next = async (): Promise<readonly [FrameSpan, PageRecords]> => {
      const { frame: span, decoded } = window.take();
      const records = await decoded;
      this.#cache.put(span.key, records);
      return [span, records];
    };
    const byPack = groupByPack(spans);
    for (const [i, some] of byPack.entries()) {
      this.#openAhead(byPack.slice(i, i + OPENS_AHEAD), options);
      const { pack } = some[0]!;
      const numbers = some.map(({ frame }) => frame);
      let at = 0;
      for await (const stored of this.#packs.frames(pack, numbers, options)) {
        const span = some[at++]!;
        if (stored.entry.kind !== FRAME_KIND_PATCH)
          window.start(span, () => decodeFrameAsync(stored.bytes, stored));
        // A patch reads frames of its own, and so on downwards: only the topmost ones at the same time, the
        // others in their turn.
        else if (options.patches === MAX_DELTA_DEPTH)
          window.start(span, () => this.#decodePatch(pack, stored, options));
        else window.defer(span, () => this.#decodePatch(pack, stored, options));
        if (window.isFull) yield await next();
      }
    }
    while (!window.isEmpty) yield await next();
  }

  #openAhead(byPack: readonly (readonly FrameSpan[])[], options: CallOptions): void {
    for (const spans of byPack) {
      // A failure is met when the pack's turn comes, or not at all after another one's.
      this.#packs.open(spans[0]!.pack, options).catch(() => undefined);
    }
  }

  async #decodePatch(pack: number, stored: StoredFrame, options: NestedOptions): Promise<PageRecords> {
    const patch = readPatch(stored.bytes, pack, stored);
    // One without sources, at depth 0, may lie below as many as have some.
    if (options.patches === 0 && patch.sources.length > 0) {
      const what = `more than ${MAX_DELTA_DEPTH} patch frames lead to this one`;
      throw damaged(stored.key, what, { frame: stored.frame });
    }
    const prefix = this.#scratch.take(patch.sources.length * PAGE_SIZE_BYTES);
    try {
      await this.#readPages(patch.sources, prefix, { ...options, patches: options.patches - 1 });
      return unpackPatch(patch, prefix, stored);
    } finally {
      this.#scratch.give(prefix);
    }
  }
}
