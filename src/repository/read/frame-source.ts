/**
 * Decoded frames of a chain: from the cache, or else read from their packs and decompressed a few at a time. A patch frame is
 * compressed against pages that older records hold (docs/format.md, patch frames): of it, only what says which pages those
 * are is read at first, and the rest once they are there.
 */

import type { CallOptions } from '../../storage/backend.js';
import { decodeFrameAsync, FRAME_KIND_PATCH, type PageRecords } from '../../format/frame.js';
import { readPatch, unpackPatchAsync, type Patch } from '../../format/patch-frame.js';
import { frameKey } from '../../format/record-ref.js';
import { DecodeWindow } from './decode-window.js';
import { FrameCache } from './frame-cache.js';
import type { PackReader, StoredFrame } from './pack-reader.js';
import type { WantedFrame } from './wanted-frames.js';

export type OpenedFrame =
  | { readonly wanted: WantedFrame; readonly records: PageRecords; readonly sources?: never }
  | { readonly wanted: WantedFrame; readonly sources: Float64Array; readonly records?: never };

export class FrameSource {
  readonly #packs: PackReader;
  readonly #cache: FrameCache;

  constructor(packs: PackReader, cacheBytes: number) {
    this.#packs = packs;
    this.#cache = new FrameCache(cacheBytes);
  }

  /** Begins to open packs whose turn comes soon: a page of a long chain has records in many. */
  openAhead(packs: readonly number[], options: CallOptions): void {
    // A failure is met when the pack's turn comes, or not at all after another one's.
    for (const pack of packs) this.#packs.open(pack, options).catch(() => undefined);
  }

  /**
   * Frames of one pack, in any order; those that are kept decoded come first. Records are shared with the cache: do not
   * change them. Of a patch frame that is held against other pages only those are said.
   * @param wanted in the order of the frames
   * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
   */
  async *framesOf(
    pack: number,
    wanted: readonly WantedFrame[],
    options: CallOptions,
  ): AsyncGenerator<OpenedFrame> {
    const missing: WantedFrame[] = [];
    for (const one of wanted) {
      const records = this.#cache.get(frameKey(pack, one.frame));
      if (records === undefined) missing.push(one);
      else yield { wanted: one, records };
    }
    if (missing.length === 0) return;
    const window = new DecodeWindow<WantedFrame, PageRecords | Patch>();
    const next = async (): Promise<OpenedFrame> => {
      const { frame: one, decoded } = window.take();
      const opened = await decoded;
      if ('packed' in opened) return { wanted: one, sources: opened.sources };
      this.#keep(pack, one.frame, opened);
      return { wanted: one, records: opened };
    };
    let at = 0;
    for await (const stored of this.#packs.frames(pack, framesIn(missing), options)) {
      window.start(missing[at++]!, () => opening(pack, stored));
      if (window.isFull) yield await next();
    }
    while (!window.isEmpty) yield await next();
  }

  /**
   * Patch frames of one pack as they are stored, in ascending order.
   * @throws as `framesOf`
   */
  patchesOf(pack: number, frames: readonly number[], options: CallOptions): AsyncGenerator<StoredFrame> {
    return this.#packs.frames(pack, frames, options);
  }

  /**
   * Unpacks a patch frame on another thread.
   * @param prefix the pages that it is held against, in order; must not change until then
   * @throws REPO_DAMAGED
   */
  async unpack(pack: number, stored: StoredFrame, prefix: Uint8Array): Promise<PageRecords> {
    const records = await unpackPatchAsync(readPatch(stored.bytes, pack, stored), prefix, stored);
    this.#keep(pack, stored.frame, records);
    return records;
  }

  #keep(pack: number, frame: number, records: PageRecords): void {
    this.#packs.effort.decoded(records.body);
    this.#cache.put(frameKey(pack, frame), records);
  }
}

async function opening(pack: number, stored: StoredFrame): Promise<PageRecords | Patch> {
  if (stored.entry.kind !== FRAME_KIND_PATCH) return decodeFrameAsync(stored.bytes, stored);
  const patch = readPatch(stored.bytes, pack, stored);
  return patch.sources.length > 0 ? patch : unpackPatchAsync(patch, new Uint8Array(0), stored);
}

function framesIn(wanted: readonly WantedFrame[]): readonly number[] {
  return wanted.map(({ frame }) => frame);
}
