/**
 * What the main thread and the owner of a share say to each other. Plain data only: everything here survives
 * structured clone. Typed arrays are transferred where the sender is done with them.
 *
 * One checkpoint, seen by one share:
 *
 *     open (once in its life)
 *     reserve -> capture* (some of them inside the pause) -> seal -> (missing -> encode)* -> reset
 *                                                                        when it failed:    -> forget
 */

import type { GuestReaderDescription } from '../hypervisor/guest-reader.js';
import type { PageRuns } from '../types.js';
import type { EncodedFrame } from '../format/frame.js';

/** Pages of one stripe belong to the same share: 512 pages are 2 MiB, a huge page, so runs are seldom cut. */
export const STRIPE_PAGES = 512;

/**
 * Pages that one `encode` call takes at most; bounds the scratch memory of a share. Content that moved is
 * found within a batch: in a simulation on a guest that packs a file tree, batches of 1024 pages stored 26 %
 * more than whole checkpoints at once.
 */
export const ENCODE_BATCH_PAGES = 4096;

export interface ShareSettings {
  /** Budget for previous versions in this share. */
  readonly cacheBytes: number;
  /** zstd level, 0 = off. */
  readonly level: number;
}

export interface ReserveRequest {
  /** Pages to make room for. */
  readonly room: number;
  /** So many of them are touched, so that no page fault happens in the pause. */
  readonly touch: number;
}

export interface CaptureReply {
  readonly capturedPages: number;
}

export interface SealReply {
  /**
   * The captured pages, ascending, each once: the last copy counts. Positions in it are what `from` and `to`
   * mean.
   */
  readonly pages: Uint32Array;
}

export interface MissingRequest {
  readonly from: number;
  readonly to: number;
  /**
   * Record that the page is to be held against, one a page of [from, to): that of its committed content;
   * ZERO_REF = the zero page.
   */
  readonly baseRefs: Float64Array;
  /** Depth of that record. */
  readonly depths: Uint8Array;
  /** 1 = store the page whole, without a base. */
  readonly whole: Uint8Array;
  /** 1 = `baseRefs` names an older record, and what the share keeps is not its content. */
  readonly older: Uint8Array;
}

export interface MissingReply {
  /** Positions relative to `from` whose base the share does not have. */
  readonly positions: Uint32Array;
}

export interface EncodeRequest extends MissingRequest {
  /** Contents of the bases named by the reply to `missing`, in that order, 4096 bytes each. */
  readonly provided: Uint8Array;
  /** Keep the new contents as previous versions even of pages that were not kept before. */
  readonly admit: boolean;
}

export interface EncodeReply {
  readonly frames: readonly EncodedFrame[];
  /** Pages that are all zero now. */
  readonly zeroPages: Uint32Array;
  /** Positions relative to `from` of pages that hold again what the older record in `baseRefs` holds. */
  readonly reverted: Uint32Array;
  /** Pages that were reported dirty and hold what they held before. */
  readonly samePageCount: number;
  /** New bytes kept in records: changed bytes of deltas, whole pages otherwise. */
  readonly changedBytes: number;
}

/** The operations of a share, one at a time. */
export interface ShareOperations {
  /** Before all others. @throws VM_GONE, VM_PERMISSION */
  open(reader: GuestReaderDescription): Promise<void>;
  /** Makes room for captured pages: nothing has to grow for them in the pause. @throws CAPTURE_FULL */
  reserve(request: ReserveRequest): Promise<void>;
  capture(runs: PageRuns): Promise<CaptureReply>;
  seal(): Promise<SealReply>;
  missing(request: MissingRequest): Promise<MissingReply>;
  encode(request: EncodeRequest): Promise<EncodeReply>;
  /** Drops what is captured. */
  reset(): Promise<void>;
  /** Drops what is captured and every previous version: they may be ahead of what was committed. */
  forget(): Promise<void>;
  close(): Promise<void>;
}

export type ShareOperation = Exclude<keyof ShareOperations, 'close'>;
