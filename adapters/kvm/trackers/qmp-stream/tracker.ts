/**
 * The tracker that needs nothing but a monitor: QEMU migrates the VM to Cairn, with its own dirty log, and
 * Cairn compares what arrives with what the stream before brought.
 *
 * All memory travels for each checkpoint. From the second one of a session on only pages that really changed
 * are reported; a first one of a process has nothing to compare with here, so its token makes the engine
 * compare with the repository.
 */

import { randomBytes } from 'node:crypto';
import { closeSync } from 'node:fs';

import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../../../src/errors.js';
import {
  TRACKS_WRITES,
  type ApproachRequest,
  type DirtyTracker,
  type Harvest,
  type MemoryPicture,
  type TrackerTraits,
} from '../../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { GuardKeeper } from '../../../guard/guard-keeper.js';
import { GuardedPause } from '../../../guard/guarded-pause.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import type { RunStateControl } from '../../run/run-state.js';
import { StreamCapture } from './capture.js';
import { Receiver } from './receiver.js';
import { allocateShared, viewsOf, type SharedViews } from './receiver-messages.js';
import { describeStagingReader } from './staging-reader.js';
import { openStaging } from './staging.js';
import { streamGuard } from './stream-guard.js';
import type { StreamManager } from './stream-manager.js';
import { streamMarkerPath } from './stream-marker.js';
import { hasFreePageHints, losesWrites, QMP_STREAM_KIND } from './support.js';

export interface QmpStreamOptions {
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  readonly runState: RunStateControl;
  readonly layout: MemoryLayout;
  readonly socketPath: string;
  readonly runtimeDir: string;
  /** Where one holds the monitor. */
  readonly manager: StreamManager | undefined;
}

interface Started {
  readonly staging: number;
  readonly views: SharedViews;
  readonly receiver: Receiver;
  readonly capture: StreamCapture;
  readonly token: string;
}

export class QmpStreamTracker implements DirtyTracker {
  readonly kind = QMP_STREAM_KIND;
  readonly traits: TrackerTraits;
  readonly #options: QmpStreamOptions;
  #started: Started | undefined;
  readonly #attachment = randomBytes(8).toString('hex');
  readonly #guard: GuardKeeper;
  /** Some stream has arrived whole: what is zero in the staging file is zero in the guest. */
  #isFilled = false;
  #recordsBeforeStop = 0;

  constructor(options: QmpStreamOptions) {
    this.#options = options;
    const { process, socketPath, manager } = options;
    const markerPath = this.#markerPath();
    const attachment = this.#attachment;
    this.#guard = new GuardKeeper(manager?.guard(markerPath) ?? streamGuard(socketPath, markerPath), () =>
      Promise.resolve({ process, markerPath, attachment, connection: options.monitor.descriptor }),
    );
    const records = (): number => this.#started?.views.counters[0] ?? 0;
    const recordsBeforeStop = (): number => this.#recordsBeforeStop;
    const picture: MemoryPicture = {
      approach: (request) => this.#approach(request),
      // Asynchronous, so that a tracker that is not started rejects and does not throw.
      runState: {
        pause: async (request) => this.#on().capture.pause(request),
        resume: async () => this.#on().capture.resume(),
      },
      deviceState: {
        save: async () => this.#on().capture.complete(),
        take: async () => this.#on().capture.take(),
      },
      reader: () => describeStagingReader(this.#on().staging),
      get pausePages() {
        return Math.max(0, records() - recordsBeforeStop());
      },
    };
    this.traits = { ...TRACKS_WRITES, picture };
  }

  get token(): string {
    return this.#on().token;
  }

  async start(): Promise<void> {
    if (this.#started !== undefined) return;
    const { monitor, runState, process, layout, manager } = this.#options;
    const [allowMissing, stopFirst] = await Promise.all([hasFreePageHints(monitor), losesWrites(monitor)]);
    const staging = openStaging(layout);
    const shared = allocateShared(layout.pageSpan);
    const receiver = new Receiver({ staging, layout, shared, allowMissing });
    this.#started = {
      staging,
      receiver,
      views: viewsOf(shared, layout.pageSpan),
      token: `${QMP_STREAM_KIND}:${process.pid}:${process.startTime}:${randomBytes(12).toString('hex')}`,
      capture: new StreamCapture({
        monitor,
        runState,
        receiver,
        manager,
        stopFirst,
        markerPath: this.#markerPath(),
        attachment: this.#attachment,
        guarded: new GuardedPause({
          guard: this.#guard,
          markerPath: this.#markerPath(),
          attachment: this.#attachment,
        }),
        onBroken: () => this.#distrust(),
      }),
    };
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  collect(): Harvest {
    const { views } = this.#on();
    const { pageSpan } = this.#options.layout;
    const dirty = DirtyBitmap.fromBytes(pageSpan, bytesOf(views.dirty));
    const absent = new DirtyBitmap(pageSpan);
    views.dirty.fill(0);
    if (this.#isFilled) {
      this.#markAll(absent);
      absent.andNot(DirtyBitmap.fromBytes(pageSpan, bytesOf(views.filled)));
    }
    return { dirty, absent };
  }

  putBack(dirty: DirtyBitmap): void {
    const into = bytesOf(this.#on().views.dirty);
    dirty.bytes.forEach((byte, i) => (into[i]! |= byte));
  }

  stop(): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  close(): void {
    const started = this.#started;
    this.#started = undefined;
    if (started === undefined) return;
    void started.capture
      .close()
      .catch(() => undefined)
      .then(() => this.#guard.release())
      .then(() => started.receiver.close())
      .finally(() => closeSync(started.staging));
  }

  async #approach(request: ApproachRequest): Promise<number | undefined> {
    const { capture, views } = this.#on();
    this.#isFilled = false;
    const stoppedAt = await capture.approach(request);
    this.#recordsBeforeStop = views.counters[0]!;
    this.#isFilled = true;
    return stoppedAt;
  }

  /** A stream broke off: nothing that the staging file or its bits say is relied upon before the next one. */
  #distrust(): void {
    const views = this.#started?.views;
    if (views === undefined) return;
    this.#isFilled = false;
    const all = new DirtyBitmap(this.#options.layout.pageSpan);
    this.#markAll(all);
    bytesOf(views.dirty).set(all.bytes);
    bytesOf(views.filled).set(all.bytes);
  }

  #markAll(bitmap: DirtyBitmap): void {
    for (const { firstPage, pageCount } of this.#options.layout.regions)
      bitmap.setRange(firstPage, pageCount);
  }

  #markerPath(): string {
    return streamMarkerPath(this.#options.runtimeDir, this.#options.process);
  }

  #on(): Started {
    if (this.#started === undefined)
      throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
    return this.#started;
  }
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
