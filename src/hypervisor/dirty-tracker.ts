/**
 * The dirty tracker: who knows which pages changed.
 *
 * The one property everything rests on: `collect` reads and clears in one step, so a write after it shows up
 * in the next `collect`, and pages are read only after it. What was collected is owed: until the manifest
 * that holds those pages is durable, every failure must hand the bits back with `putBack`.
 */

import type { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import type { DeviceStateSource } from './device-state.js';
import type { GuestReaderDescription } from './guest-reader.js';
import type { PauseControl } from './run-state.js';

export interface TrackerReport {
  readonly kind: string;
  readonly usable: boolean;
  /** Why not, or what it costs. */
  readonly reason: string;
  /** What an operator would change to make it usable. */
  readonly remedy?: string;
  /**
   * Codes of hazards with the effect `compare` that do not concern it, because it sees those writes; `all`
   * when it needs to see none.
   */
  readonly immuneTo?: readonly string[] | 'all';
  /**
   * True while it is armed in the VM, by whichever process: that may be in the way of others, see `letGo`. Absent where
   * it leaves nothing there, or where that cannot be seen.
   */
  readonly armed?: true;
}

export interface Harvest {
  /** Pages written since the last collect (or since start). Caller owns it. */
  readonly dirty: DirtyBitmap;
  /**
   * Pages known to have no memory behind them at the time of the scan: they read as zero and must not be
   * touched (reading would allocate them and undo a balloon). A subset of nothing in particular; may be
   * empty. Caller owns it.
   */
  readonly absent: DirtyBitmap;
}

export interface ApproachRequest {
  /**
   * Asked after each pass over the memory.
   * @param before what was left after the pass before
   * @param bytesPerMs pace of the stream so far
   * @returns true to stop the VM now
   */
  readonly decide: (
    round: number,
    pagesLeft: number,
    before: number | undefined,
    bytesPerMs: number,
  ) => boolean;
  readonly signal: AbortSignal | undefined;
  /**
   * For how long the VM may stand still: a process of its own ends what is under way when this one has hung
   * for that long.
   */
  readonly pauseLimitMs: number;
  readonly onRound: (round: number, pagesLeft: number) => void;
}

/**
 * Memory that the hypervisor sends, instead of Cairn reading it. What was sent is memory as it was in the
 * pause, whole and still once `deviceState.take` has returned. The engine copies nothing before that, and
 * everything while the VM runs again.
 */
export interface MemoryPicture {
  /**
   * The live phase: returns when the VM is to be stopped, or has been stopped by the hypervisor because
   * hardly anything was left. After a failure `runState.resume` is what cleans up.
   * @returns when the VM was stopped, on the clock of `performance.now()`; undefined while it runs
   * @throws VM_STATE, TRACKER_FAILED, VM_GONE, the signal's reason
   */
  approach(request: ApproachRequest): Promise<number | undefined>;
  /** Stops the VM at the end of the live phase and lets it go on, in place of the VM's own. */
  readonly runState: PauseControl;
  /** `save` has the hypervisor send the last pages as well. In place of the VM's own. */
  readonly deviceState: DeviceStateSource;
  /** How a worker reads what was sent. */
  reader(): GuestReaderDescription;
  /** Pages sent after the VM was stopped, for the summary. */
  readonly pausePages: number;
}

/**
 * What the engine goes by when it uses a tracker. Whoever makes one starts from `TRACKS_WRITES` or
 * `COMPARES_ALL`.
 */
export interface TrackerTraits {
  /**
   * False when the tracker knows nothing of writes: `collect` reports all pages each time, and they are
   * compared with the parent's.
   */
  readonly seesWrites: boolean;
  /** Set when the hypervisor sends the memory, instead of Cairn reading it. */
  readonly picture: MemoryPicture | undefined;
  /**
   * `collect` clears only while nothing at all writes to guest memory, the saving of the device state
   * included: the engine harvests before that, instead of beside it, or the last harvest of the pause would
   * report everything once more.
   */
  readonly clearsOnlyAtRest: boolean;
  /**
   * True when the last `collect` cleared what it reported, and another costs as much again however little was
   * written since: the engine then leaves out the harvest at the start of the pause and lets the one at its
   * end find all.
   */
  readonly isLastCollectEnough: () => boolean;
  /**
   * Clears for trackers that cannot do so while the VM runs: there `collect` reports everything since the
   * last clearing, and copies of a running VM save nothing. Stops the VM for the moment of a `collect` that
   * clears. The engine calls it before a live round. @returns undefined when there was no need for it @throws
   * as `collect`, VM_STATE, VM_NOT_RESUMED
   */
  readonly settle: () => Promise<Harvest | undefined>;
}

/** A tracker that reports what was written, whenever it is asked. */
export const TRACKS_WRITES: TrackerTraits = {
  seesWrites: true,
  picture: undefined,
  clearsOnlyAtRest: false,
  isLastCollectEnough: () => false,
  settle: () => Promise.resolve(undefined),
};

/** A tracker that takes every page for written, each time. */
export const COMPARES_ALL: TrackerTraits = { ...TRACKS_WRITES, seesWrites: false };

export interface DirtyTracker {
  readonly kind: string;
  readonly traits: TrackerTraits;
  /**
   * Names this arming of this tracker on this VM, and survives the process: a later process that finds the
   * same token looks at the same uninterrupted record. Another token means that writes may have gone unseen
   * in between.
   * @throws TRACKER_OFF before `start` and after `close`
   */
  readonly token: string;
  /**
   * Arms the tracker, or takes over one that an earlier process armed.
   * @throws TRACKER_UNAVAILABLE, VM_PERMISSION, VM_GONE
   */
  start(): Promise<void>;
  /**
   * Before the first `collect` of each checkpoint: proves that the record has gone on since the last one, and
   * begins another under a new token where it has not.
   * @returns the token of the record that the checkpoint collects from
   * @throws TRACKER_OFF, TRACKER_FAILED, VM_STATE while somebody else uses the record, VM_GONE
   */
  beginCheckpoint(): Promise<string>;
  /**
   * Reads and clears, atomically for each page; what was put back is included. Synchronous: it runs inside
   * the pause.
   * @throws TRACKER_OFF, TRACKER_FAILED, VM_GONE
   */
  collect(): Harvest;
  /**
   * Reports what `collect` would, and clears nothing: for who must know what was written without owing it. Absent
   * where looking is clearing, or where all pages count as written.
   * @throws as `collect`
   */
  peek?(): Harvest;
  /** Gives pages back; the next `collect` reports them again. */
  putBack(dirty: DirtyBitmap): void;
  /**
   * Disarms for good. A tracker that is to outlive the process is simply not stopped: `close` leaves it
   * armed.
   */
  stop(): Promise<void>;
  /** Releases this process' handles and leaves the tracker as it is. */
  close(): void;
}
