/**
 * Puts a running VM back to one of its checkpoints, in its own process.
 *
 *     VM runs     what differs, by the maps ---> read from the repository     (bounded; the rest is read in the pause)
 *                 marks, looked at and kept ----^
 *     paused      marks once more -> the few that came are read
 *                 note: "rewind under way"                        from here on only a rewind lets the VM run
 *                 write what differs -> clear marks               memory first: devices read it while they load
 *                 device state, disks                             the reset in it rewrites a few pages
 *                 those pages
 *                 cont, note goes
 *     VM runs     ledger: counts as before, rewound to the checkpoint
 *
 * The set of pages is exact: every page is as in a checkpoint that is known (`basis.ts`), or is marked. A page is
 * cleared of its mark only once it holds what it is to hold, so a rewind that dies at any point is done again from the
 * start with the same result.
 */

import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { faultPoint } from '../checkpoint/fault-points.js';
import type { CheckpointSession, LentVm } from '../checkpoint/session.js';
import type { LedgerEntry } from '../checkpoint/trust/ledger.js';
import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import type { PreparedRewind, RewindNote } from '../hypervisor/rewind.js';
import { addDifferingPages } from '../repository/read/differing-pages.js';
import { basisOf, type Basis } from './basis.js';
import { PagesBack } from './pages-back.js';
import { peekOf, refuseOther, rewindOf } from './refusals.js';

export interface RewindOptions {
  /** Take a checkpoint of the present first, through the same session. */
  readonly undo?: boolean;
  /** Leave the disks as they are, whatever the checkpoint has of them. */
  readonly keepDisks?: boolean;
  /** Leave the VM paused; default: as it was found. */
  readonly paused?: boolean;
  /** Memory for pages that are read before the pause; default DEFAULT_HELD_BYTES. */
  readonly heldBytes?: number;
  readonly signal?: AbortSignal | undefined;
  readonly onNotice?: ((text: string) => void) | undefined;
}

export interface RewindResult {
  readonly checkpointId: string;
  /** Of the present as it was; empty without `undo`. */
  readonly undoId: string;
  /** A rewind that was cut off was taken up. */
  readonly tookUp: boolean;
  readonly running: boolean;
  /** Pages written back, those of the second pass too. */
  readonly pages: number;
  /** Of these, read from the repository in the pause. */
  readonly pagesReadInPause: number;
  /** Pages that loading the device state had rewritten. */
  readonly pagesOfReset: number;
  /** Disks that went back. */
  readonly disks: readonly string[];
  /** From `stop` until the VM ran again, or was left. */
  readonly pauseMs: number;
  /** Until it stood still: QEMU finishes requests to disks, and flushes these. */
  readonly stopMs: number;
  /** Marks looked at once more, what they named read, the note written. */
  readonly lookMs: number;
  readonly writeMs: number;
  readonly loadMs: number;
  readonly secondPassMs: number;
  readonly totalMs: number;
}

/** 512 MiB. */
export const DEFAULT_HELD_BYTES = 2 ** 29;
/** Looks at the marks before the pause. Each leaves fewer pages for it. */
const MOST_LOOKS = 4;
/** So few are read in the pause in a moment. */
const FEW_PAGES = 64;

/**
 * @param manifest of the session's chain
 * @throws REWIND_REFUSED, VM_UNSUPPORTED, VM_STATE, TRACKER_UNAVAILABLE, DISK_NOT_COVERED, CHAIN_WRONG_VM, REPO_DAMAGED,
 *   INTERRUPTED, PAUSE_LIMIT with the VM as it was found; REWIND_FAILED with the VM paused, of no moment, until a rewind
 *   to this or another checkpoint has gone through; VM_NOT_RESUMED with the rewind done
 */
export async function rewind(
  session: CheckpointSession,
  manifest: Manifest,
  options: RewindOptions = {},
): Promise<RewindResult> {
  const startedMs = performance.now();
  const facet = rewindOf(session.vm);
  const note = facet.unfinished();
  if (options.undo === true && note !== undefined) {
    throw new CheckpointError('REWIND_UNFINISHED', 'a rewind was cut off: there is no present to keep', {
      hint: 'leave --undo away',
    });
  }
  // Before a checkpoint is taken for it in vain.
  await session.between((lent) => {
    peekOf(lent);
    refuseOther(lent, manifest);
    return Promise.resolve();
  });
  const undoId = options.undo === true ? (await session.checkpoint()).checkpointId : '';
  return session.between(async (lent) => {
    const done = await rewindLent(lent, manifest, note, options);
    return { ...done, undoId, totalMs: performance.now() - startedMs };
  });
}

async function rewindLent(
  lent: LentVm,
  manifest: Manifest,
  note: RewindNote | undefined,
  options: RewindOptions,
): Promise<Omit<RewindResult, 'undoId' | 'totalMs'>> {
  const { repository, vm } = lent;
  const call = { signal: options.signal };
  const source = repository.reader(manifest);
  const basis = await basisOf(lent, note, call);
  const [map, deviceState] = [await repository.loadMap(manifest, call), await source.deviceState(call)];
  // From the first page that is written on, a signal ends nothing.
  let isCommitted = false;
  const pages = new PagesBack({
    map,
    layout: lent.layout,
    heldBytes: options.heldBytes ?? DEFAULT_HELD_BYTES,
    read: (refs, into) => source.readPagesByRef(refs, into, isCommitted ? {} : call),
  });
  const target = {
    checkpointId: manifest.id,
    machineType: manifest.identity.machineType,
    layout: manifest.layout,
    disks: manifest.disks,
    deviceState,
  };
  const prepared = await rewindOf(vm).prepare(target, { keepDisks: options.keepDisks ?? false });
  try {
    const committed = (): void => void (isCommitted = true);
    const work = new Work(lent, { manifest, basis, pages, prepared, note, options, committed });
    return await work.run();
  } finally {
    await prepared.close();
  }
}

interface WorkParts {
  readonly manifest: Manifest;
  readonly basis: Basis;
  readonly pages: PagesBack;
  readonly prepared: PreparedRewind;
  readonly note: RewindNote | undefined;
  readonly options: RewindOptions;
  /** Called when there is no way back but a rewind. */
  readonly committed: () => void;
}

class Work {
  readonly #lent: LentVm;
  readonly #parts: WorkParts;
  /** Of the ledger and the note. */
  readonly #owner: Omit<LedgerEntry, 'state'>;

  constructor(lent: LentVm, parts: WorkParts) {
    this.#lent = lent;
    this.#parts = parts;
    const { tracker, repository, vmName, chain } = lent;
    this.#owner = {
      ...{ token: tracker.token, repositoryId: repository.id, chain: vmName },
      // Whatever the tracker counted from before: afterwards memory is known whole.
      checkpointId: chain.latest?.id ?? '',
    };
  }

  async run(): Promise<Omit<RewindResult, 'undoId' | 'totalMs'>> {
    const { ledger } = this.#lent;
    const { manifest, options, prepared, note } = this.#parts;
    const known = await this.#readAhead();
    const before = await ledger.read();
    // From the first mark that is cleared on, what the ledger says would not be true.
    await ledger.write({ ...this.#owner, state: 'owed' });
    let isCommitted = false;
    let stoppedMs: number | undefined;
    try {
      faultPoint('rewindPrepared');
      const hasStopped = await prepared.pause(() => (stoppedMs = performance.now()));
      faultPoint('rewindPaused');
      const wasRunning = hasStopped || note?.wasRunning === true;
      stoppedMs ??= performance.now();
      const stillMs = performance.now();
      await this.#readRest(known);
      options.signal?.throwIfAborted();
      await prepared.commit(this.#note(wasRunning));
      isCommitted = true;
      this.#parts.committed();
      faultPoint('rewindNoted');
      const stopMs = stillMs - stoppedMs;
      const lookMs = performance.now() - stillMs;
      const phases = await this.#putBack(known);
      const running = wasRunning && options.paused !== true;
      let resumedMs: number | undefined;
      await prepared.finish(running, () => (resumedMs = performance.now()));
      const pauseMs = (resumedMs ?? performance.now()) - stoppedMs;
      faultPoint('rewindResumed');
      await ledger.write({ ...this.#owner, state: 'clean', rewoundTo: manifest.id });
      faultPoint('rewindLedgerWritten');
      const { pages } = this.#parts;
      return {
        checkpointId: manifest.id,
        tookUp: note !== undefined,
        running,
        pages: pages.written,
        pagesReadInPause: pages.readInPause,
        disks: prepared.disks,
        ...{ pauseMs, stopMs, lookMs },
        ...phases,
      };
    } catch (error) {
      if (isCommitted) throw cutOff(error, manifest.id);
      await prepared.giveUp();
      // No mark was cleared.
      if (before !== undefined) await ledger.write(before);
      throw error;
    }
  }

  /** @returns what is known to differ before the pause */
  async #readAhead(): Promise<DirtyBitmap> {
    const { pages, basis, options } = this.#parts;
    const peek = peekOf(this.#lent);
    const known = new DirtyBitmap(this.#lent.layout.pageSpan);
    if (basis.maps === undefined) pages.addAll(known);
    else for (const map of basis.maps) addDifferingPages(pages.map, map, known);
    await pages.holdSmallRegions();
    for (let look = 0; look < MOST_LOOKS; look++) {
      known.or(peek().dirty);
      if ((await pages.hold(known)) < FEW_PAGES) break;
      options.signal?.throwIfAborted();
    }
    const beyond = pages.countBeyond(known);
    if (beyond > 0)
      options.onNotice?.(
        `${beyond} pages do not fit in the memory for them and are read in the pause, which is longer for it: --room allows more`,
      );
    return known;
  }

  /** In the pause, before anything is written: a repository that fails now leaves the VM as it was. */
  async #readRest(known: DirtyBitmap): Promise<void> {
    const { pages } = this.#parts;
    const { dirty, absent } = peekOf(this.#lent)();
    known.or(dirty);
    pages.leaveOut(absent);
    await pages.holdRest(known);
  }

  async #putBack(
    known: DirtyBitmap,
  ): Promise<Pick<RewindResult, 'writeMs' | 'loadMs' | 'secondPassMs' | 'pagesOfReset'>> {
    const { tracker } = this.#lent;
    const { pages, prepared } = this.#parts;
    const watch = [performance.now()];
    await pages.write(
      known,
      (runs, bytes) => prepared.write(runs, bytes),
      () => faultPoint('rewindHalfWritten'),
    );
    faultPoint('rewindWritten');
    tracker.collect();
    faultPoint('rewindCleared');
    watch.push(performance.now());
    await prepared.load();
    faultPoint('rewindLoaded');
    watch.push(performance.now());
    const { dirty } = peekOf(this.#lent)();
    faultPoint('rewindLookedAgain');
    // They stay marked: to the next checkpoint they count as written, for no more than they are.
    await pages.writeAgain(dirty, (runs, bytes) => prepared.write(runs, bytes));
    faultPoint('rewindWhole');
    watch.push(performance.now());
    const [writeMs, loadMs, secondPassMs] = [0, 1, 2].map((i) => watch[i + 1]! - watch[i]!);
    return { writeMs: writeMs!, loadMs: loadMs!, secondPassMs: secondPassMs!, pagesOfReset: dirty.count() };
  }

  #note(wasRunning: boolean): RewindNote {
    const { manifest, basis } = this.#parts;
    const { token, repositoryId, chain } = this.#owner;
    const mayHold = basis.maps === undefined ? [] : [...new Set([...basis.ids, manifest.id])];
    return { repositoryId, chain, targetId: manifest.id, mayHold, token, wasRunning };
  }
}

/** Guest memory is of no moment, or it is whole and the VM could not be resumed. */
function cutOff(error: unknown, checkpointId: string): unknown {
  if (isCheckpointError(error, 'VM_NOT_RESUMED') || isCheckpointError(error, 'VM_GONE')) return error;
  return new CheckpointError(
    'REWIND_FAILED',
    `the rewind to ${checkpointId} has failed half-way, and the VM stands still: ${describeError(error)}`,
    {
      cause: error,
      hint: `do not resume it by hand, its memory is of no moment: run cairn rewind again, to this checkpoint or another one`,
      detail: { checkpointId, ...(isCheckpointError(error) ? { because: error.code } : {}) },
    },
  );
}
