/**
 * The log-dirty bitmap of a domain with hardware-assisted paging.
 *
 * There is one bitmap per domain, and anybody in dom0 may switch it off, on again, or read and clear it (xl
 * save, xl migrate, xl remus do). Reading it while tracking is off succeeds and shows no dirty page. So
 * nothing is taken from it without a probe: switching tracking on must be refused with EINVAL, "it is on".
 * When it is not refused, somebody had switched it off: tracking is on again from here, under a new token,
 * and the core compares all pages. A save or migration by somebody else always ends by switching tracking
 * off, so the probe sees it afterwards; while one is under way no checkpoint is taken (see
 * `foreign-save.ts`).
 *
 * Ballooning: pages that come back are not flagged. "Present now, not present at the last collect" counts as
 * dirty, and what is not present is reported as absent.
 *
 * Backends: what dom0 writes through a mapping that it keeps is not flagged either. In the stop every frame
 * that is mapped for writing counts as dirty (see `shared-frames.ts`). While the guest runs this is not
 * needed: a mapping either lasts until the stop or is flagged when it ends.
 *
 * Sources: xen/include/public/domctl.h (XEN_DOMCTL_shadow_op), and docs/xen.md for what was measured.
 */

import { randomBytes } from 'node:crypto';

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../../src/errors.js';
import { errnoName } from '../../../src/ffi/libc.js';
import { TRACKS_WRITES, type DirtyTracker, type Harvest } from '../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { XenDomain } from '../domain/domain.js';
import { LOGDIRTY_FINAL, SHADOW_OP, SHORT_BITMAP } from '../ffi/library.js';
import { readRecord, removeRecord, writeRecord } from './log-dirty-record.js';
import { firstFrameOf, pageOfFrame } from '../domain/physmap.js';
import { absentPages, type PresenceScanner } from '../memory/presence.js';
import { framesSharedForWriting } from '../memory/shared-frames.js';

export const LOG_DIRTY_KIND = 'log-dirty';

export interface LogDirtyOptions {
  readonly domain: XenDomain;
  readonly layout: MemoryLayout;
  readonly recordPath: string;
  readonly presence: PresenceScanner;
  readonly isStopped: () => boolean;
  /** Names who else is saving or migrating this domain at the moment; empty when nobody is. */
  readonly foreignSave: () => string;
  /** Has the device model of a guest report its writes to the hypervisor; absent for a guest without one. */
  readonly reportWrites?: () => Promise<void>;
}

export class LogDirtyTracker implements DirtyTracker {
  readonly kind = LOG_DIRTY_KIND;
  readonly traits = TRACKS_WRITES;
  readonly #options: LogDirtyOptions;
  #token = '';
  /** Pages present at the last collect. Undefined: not known, so every page counts as new. */
  #present: DirtyBitmap | undefined;
  #owed: DirtyBitmap | undefined;
  #bits = new Uint8Array(0);

  constructor(options: LogDirtyOptions) {
    this.#options = options;
  }

  get token(): string {
    this.#mustBeOn();
    return this.#token;
  }

  async start(): Promise<void> {
    if (this.#token !== '') return;
    await this.#tellDeviceModel();
    this.#arm();
  }

  /**
   * Probes: a new token means that somebody had switched tracking off. After it either both the hypervisor
   * and the device model have kept the record all the time, or both keep it from here under a new token.
   * Whoever saves the domain switches the hypervisor off first and the device model after it, and is gone
   * only after both; nobody is under way when the device model is told, so what switches it off later shows
   * in the hypervisor's bitmap.
   * @throws VM_STATE while somebody else saves or migrates the domain, and so uses the bitmap
   */
  async beginCheckpoint(): Promise<string> {
    this.#mustBeOn();
    this.#mustBeAlone();
    if (!this.#isStillOn()) this.#beginAnew();
    if (this.#options.reportWrites !== undefined) {
      await this.#tellDeviceModel();
      this.#mustBeAlone();
      if (!this.#isStillOn()) {
        this.#beginAnew();
        // Whoever did that meanwhile has told the device model to report no more as well.
        throw this.#switchedOff();
      }
    }
    return this.#token;
  }

  collect(): Harvest {
    this.#mustBeOn();
    const { layout, presence, recordPath } = this.#options;
    if (!this.#isStillOn()) {
      this.#beginAnew();
      throw this.#switchedOff();
    }
    // The shared frames are read before the bitmap: a frame that is unmapped in between is in both, and not
    // in none.
    const shared = this.#options.isStopped() ? framesSharedForWriting(this.#options.domain) : [];
    const dirty = this.#readAndClear();
    const present = presence.present();
    for (const frame of shared) {
      const page = pageOfFrame(layout, frame);
      if (page !== undefined && present.has(page)) dirty.set(page);
    }
    // Taken before the fresh pages are mixed in: bits of pages that are no longer there must not be lost when
    // they come back.
    const fresh = present.clone();
    if (this.#present !== undefined) fresh.andNot(this.#present);
    dirty.or(fresh);
    const hasChanged = this.#present === undefined || !sameBits(this.#present, present);
    if (this.#present !== undefined && hasChanged) {
      const gone = this.#present.clone();
      gone.andNot(present);
      // Flagged by the hypervisor as well; said here so that a hole never depends on it.
      dirty.or(gone);
    }
    this.#present = present;
    if (hasChanged) writeRecord(recordPath, layout, this.#token, present);
    if (this.#owed !== undefined) dirty.or(this.#owed);
    this.#owed = undefined;
    return { dirty, absent: absentPages(layout, present) };
  }

  putBack(dirty: DirtyBitmap): void {
    this.#mustBeOn();
    if (this.#owed === undefined) this.#owed = dirty.clone();
    else this.#owed.or(dirty);
  }

  stop(): Promise<void> {
    const { domain, recordPath } = this.#options;
    if (this.#token !== '') {
      domain.check(
        domain.calls.shadowControl(domain.domid, SHADOW_OP.off),
        'switching off log-dirty tracking',
      );
      removeRecord(recordPath);
    }
    this.close();
    return Promise.resolve();
  }

  close(): void {
    this.#token = '';
    this.#present = undefined;
    this.#owed = undefined;
  }

  #arm(): void {
    const { domain, layout, recordPath, foreignSave } = this.#options;
    if (this.#enable()) {
      this.#beginAnew();
      return;
    }
    const record = readRecord(recordPath, layout);
    if (record !== undefined) {
      this.#token = record.token;
      this.#present = record.present;
      return;
    }
    const saver = foreignSave();
    if (saver !== '') {
      throw new CheckpointError(
        'TRACKER_UNAVAILABLE',
        `log-dirty tracking of domain ${domain.domid} is on, and ${saver} may be using it`,
        { hint: 'wait until that save or migration is over, or use --tracker compare', retryable: true },
      );
    }
    // Left over from somebody who is gone, or refused for another reason: off and on again tells.
    domain.calls.shadowControl(domain.domid, SHADOW_OP.off);
    if (!this.#enable()) {
      throw new CheckpointError(
        'TRACKER_UNAVAILABLE',
        `log-dirty tracking of domain ${domain.domid} cannot be switched on`,
        {
          hint: 'a domain with a passed-through device cannot be tracked; use --tracker compare',
        },
      );
    }
    this.#beginAnew();
  }

  /** @returns false when it was on already (EINVAL). @throws TRACKER_UNAVAILABLE, VM_GONE, VM_PERMISSION */
  #enable(): boolean {
    const { domain } = this.#options;
    const done = domain.calls.shadowControl(domain.domid, SHADOW_OP.enableLogDirty);
    if (done.value >= 0) return true;
    const name = errnoName(done.errno);
    if (name === 'EINVAL') return false;
    if (name === 'EOPNOTSUPP' || name === 'ENOTSUP' || name === 'ENOMEM') {
      throw new CheckpointError(
        'TRACKER_UNAVAILABLE',
        name === 'ENOMEM'
          ? `no memory in the hypervisor for log-dirty tracking of domain ${domain.domid}`
          : `this hypervisor cannot track the writes of domain ${domain.domid}`,
        { hint: 'use --tracker compare', detail: { errno: name } },
      );
    }
    domain.check(done, 'switching on log-dirty tracking');
    return true;
  }

  #isStillOn(): boolean {
    return !this.#enable();
  }

  /**
   * Tracking was switched on just now. One reading is thrown away: Xen 4.17 keeps its count of dirty pages
   * when tracking is switched off and resets it only in a reading (`paging_log_dirty_op`), so the first count
   * may be that of an earlier user.
   */
  #beginAnew(): void {
    this.#forget();
    const { domain } = this.#options;
    const frameCount = domain.frameCount();
    const bits = new Uint8Array(Math.ceil(frameCount / 64) * 8);
    const done = domain.calls.logDirty(
      domain.domid,
      SHADOW_OP.clean,
      frameCount,
      0,
      bits,
      new Uint32Array(2),
    );
    domain.check(done, 'reading the dirty bitmap for the first time');
  }

  /** A new record starts here: nothing is known of the time before. */
  #forget(): void {
    const { layout, recordPath } = this.#options;
    this.#token = `${LOG_DIRTY_KIND}:${randomBytes(12).toString('hex')}`;
    this.#present = undefined;
    writeRecord(recordPath, layout, this.#token, new DirtyBitmap(layout.pageSpan));
  }

  #readAndClear(): DirtyBitmap {
    const { domain, layout, isStopped } = this.#options;
    const frameCount = domain.frameCount();
    const sizeBytes = Math.ceil(frameCount / 64) * 8;
    if (this.#bits.length !== sizeBytes) this.#bits = new Uint8Array(sizeBytes);
    const stats = new Uint32Array(2);
    const mode = isStopped() ? LOGDIRTY_FINAL : 0;
    const done = domain.calls.logDirty(domain.domid, SHADOW_OP.clean, frameCount, mode, this.#bits, stats);
    if (done.value < 0)
      throw this.#failed(done.value === SHORT_BITMAP ? 'short bitmap' : errnoName(done.errno));
    const all = DirtyBitmap.fromBytes(frameCount, this.#bits);
    const counted = all.count();
    if (counted !== stats[1]) {
      throw this.#failed(`${counted} bits where the hypervisor counted ${stats[1] ?? 0} dirty pages`);
    }
    const dirty = new DirtyBitmap(layout.pageSpan);
    for (const region of layout.regions) {
      const from = firstFrameOf(region) / 8;
      // A region may reach past the last frame; windows and regions start at whole bytes.
      dirty.bytes.set(this.#bits.subarray(from, from + region.pageCount / 8), region.firstPage / 8);
    }
    const outside = counted - dirty.count();
    if (outside > 0) this.#checkOutside(all, outside);
    return dirty;
  }

  /** Dirty frames outside of every region must not be memory of the guest: then the layout is out of date. */
  #checkOutside(all: DirtyBitmap, outside: number): void {
    const { domain, layout } = this.#options;
    for (const region of layout.regions) {
      const first = firstFrameOf(region);
      const count = Math.min(region.pageCount, all.pageCount - first);
      if (count > 0) all.andNot(DirtyBitmap.fromRuns(all.pageCount, Uint32Array.of(first, count)));
    }
    const runs = all.toRuns();
    for (let i = 0; i < runs.length; i += 2) {
      domain.visitPresent(runs[i]!, runs[i + 1]!, () => {
        throw this.#failed(`memory appeared outside of the known regions (${outside} dirty pages)`);
      });
    }
  }

  /** The bitmap may have been cleared: nothing that rests on it is trusted any more. */
  #failed(why: string): CheckpointError {
    this.#forget();
    return new CheckpointError(
      'TRACKER_FAILED',
      `reading the dirty bitmap of domain ${this.#options.domain.domid}: ${why}`,
      { hint: 'the next checkpoint compares all pages', retryable: true },
    );
  }

  async #tellDeviceModel(): Promise<void> {
    const { reportWrites } = this.#options;
    if (reportWrites === undefined) return;
    this.#mustBeAlone();
    await reportWrites();
  }

  #mustBeAlone(): void {
    const saver = this.#options.foreignSave();
    if (saver === '') return;
    throw new CheckpointError('VM_STATE', `a save or migration is under way: ${saver}`, {
      hint: 'wait until it is over',
      retryable: true,
    });
  }

  #switchedOff(): CheckpointError {
    return new CheckpointError(
      'TRACKER_FAILED',
      `somebody switched log-dirty tracking of domain ${this.#options.domain.domid} off during the checkpoint`,
      { hint: 'the next checkpoint compares all pages', retryable: true },
    );
  }

  #mustBeOn(): void {
    if (this.#token !== '') return;
    throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
  }
}

function sameBits(a: DirtyBitmap, b: DirtyBitmap): boolean {
  return Buffer.compare(a.bytes, b.bytes) === 0;
}
