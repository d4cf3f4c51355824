/**
 * One read of many records in which every frame is decoded once. References lead backwards in the order of writing, so two
 * passes do:
 *
 *     down, newest pack first   frames of pages are decoded, their deltas set aside, their bases wanted; whole pages are
 *                               bottoms, and what lies on them is built at once. Of a patch frame only its sources are
 *                               read, which are wanted as pages of their own.
 *     up, oldest patch first    by now the sources of each patch frame are there, or come out of those before it: it is
 *                               unpacked, and what lies on its pages is built.
 *
 *     pack      9          7            3           1                    3             9
 *           [ delta ]--> [patch]                                      unpack -----> unpack
 *               |          `-sources-> [patch] -sources-> [ pages ]     ^ prefix      ^ prefix
 *               `------------------------base------------> [ pages ]    built at once
 *
 * Sources are kept until the end. Where there would be too many of them, the read gives up, and says which records it has
 * not got to.
 */

import type { CallOptions } from '../../storage/backend.js';
import type { Scratch } from '../../host/scratch.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import type { PageRecords } from '../../format/frame.js';
import { frameKey, MAX_DELTA_DEPTH, ZERO_REF } from '../../format/record-ref.js';
import { DecodeWindow } from './decode-window.js';
import type { FrameSource } from './frame-source.js';
import type { StoredFrame } from './pack-reader.js';
import { PageBuilder, type PageBuilderDeps, type PageSink } from './page-builder.js';
import { SourcePages } from './source-pages.js';
import { WantedFrames, type WantedFrame } from './wanted-frames.js';

/** Packs opened before their turn. Each holds a descriptor or two meanwhile. */
const OPENS_AHEAD = 8;

export interface PlannedReadDeps extends PageBuilderDeps {
  readonly frames: FrameSource;
  /** For the pages that a patch frame is held against, in a row. */
  readonly scratch: Scratch;
  /** Most pages kept as sources. */
  readonly mostSources: number;
  /**
   * Reads the pages that a patch frame is held against, 4096 bytes each, as a read of its own: each patch frame is then
   * unpacked when it is met, and no source is kept.
   */
  readonly readSources?: ((sources: Float64Array, into: Uint8Array) => Promise<void>) | undefined;
  readonly damagedFrame: (pack: number, frame: number, what: string) => Error;
}

/** A patch frame on the way: what it is held against, and who wants which of its records. */
interface WaitingPatch extends WantedFrame {
  readonly pack: number;
  readonly sources: Float64Array;
}

export class PlannedRead {
  readonly #refs: Float64Array;
  readonly #deps: PlannedReadDeps;
  readonly #builder: PageBuilder;
  readonly #wanted = new WantedFrames();
  readonly #sources = new SourcePages();
  readonly #patches = new Map<number, WaitingPatch>();
  readonly #isDone: Uint8Array;
  /** Patch frames with sources that lie below the pages being built. */
  #patchesBelow = 0;

  /**
   * @param refs of records, none of them the zero page; the slot of each is its place in this array
   * @param sink gets each page once
   */
  constructor(refs: Float64Array, sink: PageSink, deps: PlannedReadDeps) {
    this.#refs = refs;
    this.#deps = deps;
    this.#isDone = new Uint8Array(refs.length);
    const { bottom } = sink;
    this.#builder = new PageBuilder(
      {
        page: (slot, page) => {
          if (slot >= refs.length) this.#sources.put(slot - refs.length, page, this.#patchesBelow);
          else {
            this.#isDone[slot] = 1;
            sink.page(slot, page);
          }
        },
        bottom:
          bottom &&
          ((slot, ref, deltas, page) => {
            if (slot < refs.length) bottom(slot, ref, deltas, page);
          }),
      },
      deps,
    );
    for (const [slot, ref] of refs.entries()) this.#wanted.want(slot, ref);
  }

  /**
   * Reads; after each step the sink may have got pages.
   * @returns slots that did not get theirs, because there were too many sources
   * @throws REPO_DAMAGED naming pack and frame, REPO_VERSION, INTERRUPTED, and what the backend throws
   */
  async *run(options: CallOptions): AsyncGenerator<void, readonly number[]> {
    yield* this.#down(options);
    if (this.#sources.count <= this.#deps.mostSources) yield* this.#up(options);
    return [...this.#refs.keys()].filter((slot) => this.#isDone[slot] === 0);
  }

  async *#down(options: CallOptions): AsyncGenerator<void> {
    const { frames, mostSources, readSources } = this.#deps;
    for (;;) {
      const [pack, ...soon] = this.#wanted.newestPacks(1 + OPENS_AHEAD);
      if (pack === undefined) return;
      frames.openAhead(soon, options);
      const unknown = this.#wanted.takeNewest().filter((one) => !this.#joinPatch(pack, one));
      for await (const { wanted, records, sources } of frames.framesOf(pack, unknown, options)) {
        if (records !== undefined) this.#takeFrom(wanted, records);
        else if (readSources === undefined) this.#addPatch(pack, wanted, sources);
        else this.#takeFrom(wanted, await this.#unpackAlone(pack, wanted.frame, sources, options));
        if (this.#sources.count > mostSources) return;
        yield;
      }
    }
  }

  /** @returns false when the frame is no patch frame that is on the way already */
  #joinPatch(pack: number, { frame, slots, refs }: WantedFrame): boolean {
    const patch = this.#patches.get(frameKey(pack, frame));
    patch?.slots.push(...slots);
    patch?.refs.push(...refs);
    return patch !== undefined;
  }

  #addPatch(pack: number, wanted: WantedFrame, sources: Float64Array): void {
    this.#patches.set(frameKey(pack, wanted.frame), { ...wanted, pack, sources });
    for (const ref of sources) {
      const number = this.#sources.add(ref);
      if (number !== undefined) this.#wanted.want(this.#refs.length + number, ref);
    }
  }

  #takeFrom({ slots, refs }: WantedFrame, records: PageRecords): void {
    for (const [i, slot] of slots.entries()) {
      const ref = refs[i]!;
      if (this.#builder.deltasOf(slot) > MAX_DELTA_DEPTH)
        throw this.#deps.damagedRecord(ref, `more than ${MAX_DELTA_DEPTH} deltas lead to this record`);
      const base = this.#builder.take(slot, ref, records);
      if (base !== ZERO_REF) this.#wanted.want(slot, base);
    }
    this.#builder.flush();
  }

  async #unpackAlone(
    pack: number,
    frame: number,
    sources: Float64Array,
    options: CallOptions,
  ): Promise<PageRecords> {
    const { frames, scratch, readSources, damagedFrame } = this.#deps;
    const prefix = scratch.take(sources.length * PAGE_SIZE_BYTES);
    try {
      await readSources!(sources, prefix);
      for await (const stored of frames.patchesOf(pack, [frame], options))
        return await frames.unpack(pack, stored, prefix);
    } finally {
      scratch.give(prefix);
    }
    throw damagedFrame(pack, frame, 'frame is missing');
  }

  async *#up(options: CallOptions): AsyncGenerator<void> {
    const inFlight = new DecodeWindow<WaitingPatch, PageRecords>();
    const complete = async (): Promise<void> => {
      const { frame: patch, decoded } = inFlight.take();
      const records = await decoded;
      this.#patchesBelow = this.#patchesIn(patch);
      this.#takeFrom(patch, records);
    };
    for (const [pack, patches] of byPack(this.#patches)) {
      const stored = this.#deps.frames.patchesOf(
        pack,
        patches.map(({ frame }) => frame),
        options,
      );
      for (const patch of patches) {
        const { value } = (await stored.next()) as IteratorYieldResult<StoredFrame>;
        // Those that are not there yet come out of patches under way.
        while (inFlight.isFull || !this.#sources.haveAll(patch.sources)) {
          await complete();
          yield;
        }
        if (this.#patchesIn(patch) > MAX_DELTA_DEPTH) {
          const what = `more than ${MAX_DELTA_DEPTH} patch frames lead to this one`;
          throw this.#deps.damagedFrame(pack, patch.frame, what);
        }
        inFlight.start(patch, () => this.#unpack(patch, value));
      }
    }
    while (!inFlight.isEmpty) {
      await complete();
      yield;
    }
  }

  #patchesIn({ sources }: WaitingPatch): number {
    return this.#sources.patchesBelow(sources) + 1;
  }

  async #unpack({ pack, sources }: WaitingPatch, stored: StoredFrame): Promise<PageRecords> {
    const { frames, scratch } = this.#deps;
    const prefix = scratch.take(sources.length * PAGE_SIZE_BYTES);
    try {
      this.#sources.copy(sources, prefix);
      return await frames.unpack(pack, stored, prefix);
    } finally {
      scratch.give(prefix);
    }
  }
}

/** In the order of writing. */
function byPack(patches: ReadonlyMap<number, WaitingPatch>): ReadonlyMap<number, readonly WaitingPatch[]> {
  const packs = new Map<number, WaitingPatch[]>();
  for (const key of [...patches.keys()].sort((a, b) => a - b)) {
    const patch = patches.get(key)!;
    const some = packs.get(patch.pack);
    if (some === undefined) packs.set(patch.pack, [patch]);
    else some.push(patch);
  }
  return packs;
}
