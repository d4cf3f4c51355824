/**
 * Memory and device state of a VM by a live migration to Cairn itself.
 *
 *     approach   VM runs: settings, `migrate`; QEMU sends all memory, then what was dirtied, pass after pass
 *     pause      `stop`, unless QEMU has stopped the VM because next to nothing was left; up to the state
 *                pre-switchover
 *     complete   last pages, device state; the migration is completed, the VM in state postmigrate
 *     resume     `cont`: QEMU takes its disks back and the VM goes on as if nothing had been
 *
 * From `approach` to the end a guard process of its own stands by: when Cairn dies, it cancels the migration,
 * continues the VM and puts the operator's migration settings back. A reader that is gone makes QEMU fail the
 * migration by itself. The guard does the same when Cairn hangs: QEMU may stop the VM at any moment, so Cairn
 * has to say again and again that it follows, until the VM is stopped; from then on the limit of the pause
 * runs.
 */

import { CheckpointError, describeError, isCheckpointError } from '../../../../src/errors.js';
import type { ApproachRequest } from '../../../../src/hypervisor/dirty-tracker.js';
import { findBlockers } from '../../inspect/blockers.js';
import type { PauseRequest } from '../../../../src/hypervisor/run-state.js';
import { isMigrating } from '../../inspect/hazards.js';
import { refuseBlocked } from '../../../qemu/migration-blockers.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { pauseTaken, type GuardedPause } from '../../../guard/guarded-pause.js';
import { asArray, asText } from '../../../qemu/qmp-json.js';
import type { RunStateControl } from '../../run/run-state.js';
import { withRunState } from '../../../qemu/stream/device-state.js';
import { SECTION, STREAM_MAGIC, STREAM_VERSION } from '../../../qemu/stream/format.js';
import { endMigration, isNotFinalized, leftMigration, migrationStatus } from './abandon.js';
import { Migration } from './migration.js';
import type { Receiver } from './receiver.js';
import type { ReceivedStream } from './receiver-messages.js';
import { planSettings, setSettings, type MigrationSettings } from './settings.js';
import type { StreamManager } from './stream-manager.js';
import { setStreamMarker } from './stream-marker.js';

export interface CaptureDeps {
  readonly monitor: Monitor;
  readonly runState: RunStateControl;
  readonly receiver: Receiver;
  readonly manager: StreamManager | undefined;
  readonly markerPath: string;
  /** A stream, from the first change of a setting until the VM runs after it, as its guard sees it. */
  readonly guarded: GuardedPause;
  /** Nothing may run while memory travels: see `losesWrites`. */
  readonly stopFirst: boolean;
  /** Names the attachment in the marker, for the guard. */
  readonly attachment: string;
  /** The staging file may be ahead of what its dirty bits say, or behind. */
  readonly onBroken: () => void;
}

/** What is under way; from the first change of a setting until everything is put back. */
interface UnderWay {
  readonly putBack: MigrationSettings;
  /** Says that Cairn follows. */
  readonly heartbeat: NodeJS.Timeout;
  migration?: Migration;
  ended?: Promise<ReceivedStream>;
}

/** What is left then may wait until this process ends. The longest time of a timer is 2^31 - 1 ms. */
const NO_LIMIT_MS = 2_000_000_000;
/** Cairn hangs for this much less than the limit before the guard acts, in the worst case. */
const HEARTBEAT_MS = 500;

export class StreamCapture {
  readonly #deps: CaptureDeps;
  #underWay: UnderWay | undefined;
  #putBack: Promise<void> = Promise.resolve();
  #received: Promise<ReceivedStream> | undefined;
  /** Settings of the operator that could not be put back after the stream before. */
  #owed: MigrationSettings | undefined;
  /** Somebody paused the VM while its memory was streamed, and it stays so. */
  #isPausedByOther = false;

  constructor(deps: CaptureDeps) {
    this.#deps = deps;
  }

  /** See `MemoryPicture.approach`. */
  async approach({ decide, signal, onRound, pauseLimitMs }: ApproachRequest): Promise<number | undefined> {
    await this.#putBack;
    await this.#begin(pauseLimitMs);
    const started = performance.now();
    if (this.#deps.stopFirst) {
      signal?.throwIfAborted();
      this.#endHeartbeat();
      if (!(await this.#deps.runState.pause({ limitMs: pauseLimitMs }))) throw pausedByOther();
      await this.#migrate();
      return started;
    }
    const migration = await this.#migrate();
    let passes = 1;
    let before: number | undefined;
    for (;;) {
      if (migration.stoppedAt !== undefined) {
        await this.#mustBeStoppedByMigration();
        this.#endHeartbeat();
        return migration.stoppedAt;
      }
      if (migration.passes <= passes) {
        await migration.news(signal);
        continue;
      }
      passes = migration.passes;
      const { remainingPages, transferredBytes } = await migration.progress();
      onRound(passes - 1, remainingPages);
      const bytesPerMs = transferredBytes / Math.max(1, performance.now() - started);
      // It may have been stopped since, by whomever: that is looked at first.
      if (decide(passes - 1, remainingPages, before, bytesPerMs) && !isStopped(migration)) return undefined;
      before = remainingPages;
    }
  }

  /**
   * The VM is stopped and nearly everything is here.
   * @returns true, as `PauseControl.pause`
   * @throws VM_STATE, TRACKER_FAILED, QMP_TIMEOUT, PAUSE_LIMIT, VM_GONE
   */
  async pause({ limitMs }: PauseRequest = {}): Promise<boolean> {
    const migration = this.#migration();
    this.#endHeartbeat();
    if (migration.stoppedAt === undefined && !this.#deps.stopFirst) {
      try {
        if (!(await this.#deps.runState.pause({ duringOwnMigration: true, limitMs }))) {
          this.#isPausedByOther = true;
          throw pausedByOther();
        }
      } catch (error) {
        // QEMU may be stopping the VM in this very moment, which is what was wanted. Its state says so before
        // the vCPUs have come to rest, its STOP event only after that.
        if (!(await this.#deps.runState.isFinishingMigration())) throw error;
      }
    }
    await migration.reachSwitchover();
    return true;
  }

  /** Everything has left QEMU. @throws TRACKER_FAILED, QMP_TIMEOUT, VM_GONE */
  complete(): Promise<void> {
    return this.#migration().complete();
  }

  /** Makes the VM run, wherever the migration stands. @throws VM_NOT_RESUMED, PAUSE_LIMIT, VM_GONE */
  async resume(): Promise<void> {
    const { runState, guarded } = this.#deps;
    if (this.#underWay === undefined) return runState.resume();
    try {
      if (guarded.isTaken()) throw pauseTaken();
      await this.#resume(this.#underWay);
    } catch (error) {
      // Once one guard has cut the connection, nothing but the other can end the migration.
      if (!guarded.isTaken() && !isCheckpointError(error, 'PAUSE_LIMIT')) throw error;
      await this.#afterTaken();
    }
  }

  async #resume(underWay: UnderWay): Promise<void> {
    const { monitor, runState, receiver, onBroken } = this.#deps;
    if (underWay.migration?.isCompleted !== true) {
      onBroken();
      receiver.cut();
      await endMigration(monitor);
      if (this.#isPausedByOther) await runState.leaveStopped();
      else await runState.resumeFromCancelled();
      await this.#cleanUp();
      return;
    }
    try {
      await runState.resumeFromMigration();
    } catch (error) {
      if (!isNotFinalized(rootOf(error))) throw error;
      // QEMU says "completed" a moment before it lets the VM go on.
      await leftMigration(monitor);
      await runState.resumeFromMigration();
    }
    if (this.#deps.guarded.isTaken()) throw pauseTaken();
    this.#received = underWay.ended;
    this.#putBack = this.#cleanUp();
  }

  /** The guards have ended the stream and resumed the VM, or are about to. @throws PAUSE_LIMIT, VM_NOT_RESUMED */
  async #afterTaken(): Promise<never> {
    const { runState, guarded, receiver, onBroken } = this.#deps;
    const underWay = this.#underWay;
    this.#underWay = undefined;
    onBroken();
    receiver.cut();
    clearInterval(underWay?.heartbeat);
    underWay?.migration?.close();
    const seen = await guarded.awaitGuard();
    // Of a VM that Cairn stopped itself another guard takes the pause away.
    await runState.resume().catch((error: unknown) => {
      if (isCheckpointError(error, 'VM_NOT_RESUMED')) throw error;
    });
    if (seen !== 'resumed') {
      throw new CheckpointError(
        'VM_NOT_RESUMED',
        'the guard process of Cairn has not yet ended the migration of a pause that was too long',
        { hint: 'look at the VM in its monitor (info status, info migrate)' },
      );
    }
    await guarded.end();
    throw pauseTaken();
  }

  /** Waits for the last bytes. Caller owns the result. @throws VM_STATE, STREAM_MALFORMED, TRACKER_FAILED */
  async take(): Promise<Uint8Array> {
    const ended = this.#received;
    this.#received = undefined;
    if (ended === undefined) throw new CheckpointError('VM_STATE', 'no device state has been received');
    await this.#putBack;
    try {
      return deviceStateBlob((await ended).deviceBytes);
    } catch (error) {
      this.#deps.onBroken();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#putBack;
    if (this.#underWay === undefined) return;
    this.#deps.onBroken();
    this.#deps.receiver.cut();
    await endMigration(this.#deps.monitor);
    await this.#cleanUp();
  }

  /** @throws VM_STATE when it was somebody else */
  async #mustBeStoppedByMigration(): Promise<void> {
    if (await this.#isStoppedByMigration()) return;
    this.#isPausedByOther = true;
    throw pausedByOther();
  }

  async #isStoppedByMigration(): Promise<boolean> {
    const { manager, runState } = this.#deps;
    return manager === undefined ? runState.isFinishingMigration() : manager.isStoppedByMigration();
  }

  async #begin(limitMs: number): Promise<void> {
    const { monitor, runState, manager, guarded, markerPath, attachment } = this.#deps;
    await manager?.ready();
    const [found, status, blockJobs, blockers] = await Promise.all([
      runState.read(),
      migrationStatus(monitor),
      monitor.execute('query-block-jobs'),
      findBlockers(monitor),
    ]);
    // Before the settings are changed, and before a stop where the VM has to be stopped first.
    refuseBlocked(blockers);
    if (isMigrating(status)) {
      throw new CheckpointError('VM_STATE', `a migration of this VM is under way (${status})`, {
        hint: 'wait until it is over, or cancel it',
        retryable: true,
      });
    }
    if (found !== 'running') {
      throw new CheckpointError('VM_STATE', 'tracker qmp-stream works on a running VM only', {
        hint: 'a migration would leave a paused VM in another state: continue the VM, or use another tracker',
      });
    }
    const [blockJob] = asArray(blockJobs);
    if (blockJob !== undefined) {
      // A block job keeps QEMU from giving its disks up, which is the end of every migration: the stream
      // would fail in the pause.
      throw new CheckpointError(
        'VM_STATE',
        `a block job is under way (${asText(blockJob.type)} of ${asText(blockJob.device)})`,
        {
          hint: 'wait until it is over, end it (virsh blockjob DOMAIN DISK), or use another tracker',
          retryable: true,
        },
      );
    }
    if (this.#owed !== undefined) await setSettings(monitor, this.#owed);
    this.#owed = undefined;
    this.#isPausedByOther = false;
    const plan = await planSettings(monitor);
    await guarded.begin(limitMs, () =>
      setStreamMarker(markerPath, { attachment, putBack: plan.putBack, isOver: false }),
    );
    const heartbeat = setInterval(() => void guarded.within(limitMs), HEARTBEAT_MS);
    this.#underWay = { putBack: plan.putBack, heartbeat };
    await setSettings(monitor, plan.apply);
  }

  async #migrate(): Promise<Migration> {
    const { monitor, receiver } = this.#deps;
    const underWay = this.#underWay!;
    const { ended } = await receiver.receive(async (descriptor) => {
      underWay.migration = await Migration.start(monitor, descriptor);
    });
    underWay.ended = ended;
    const migration = underWay.migration!;
    ended.catch((error: unknown) => {
      migration.break(
        isCheckpointError(error) ? error : new CheckpointError('TRACKER_FAILED', describeError(error)),
      );
    });
    return migration;
  }

  #endHeartbeat(): void {
    clearInterval(this.#underWay?.heartbeat);
  }

  #migration(): Migration {
    const migration = this.#underWay?.migration;
    if (migration === undefined) throw new CheckpointError('VM_STATE', 'no stream of memory is under way');
    return migration;
  }

  /**
   * The VM runs and the migration is over: the operator's settings come back, the guard goes. Never rejects.
   */
  async #cleanUp(): Promise<void> {
    const { monitor, markerPath, attachment, guarded } = this.#deps;
    const underWay = this.#underWay;
    this.#underWay = undefined;
    if (underWay === undefined) return;
    const { putBack } = underWay;
    clearInterval(underWay.heartbeat);
    underWay.migration?.close();
    try {
      setStreamMarker(markerPath, { attachment, putBack, isOver: true });
      await setSettings(monitor, putBack);
      await guarded.end();
    } catch (error) {
      this.#owed = putBack;
      void guarded.within(NO_LIMIT_MS);
      // The guard and the marker stay: one of them does it as soon as this process is gone.
      if (!isCheckpointError(error, 'VM_GONE'))
        process.emitWarning(`migration settings of the VM are not put back yet: ${describeError(error)}`);
    }
  }
}

/** Asked anew: an answer from before an `await` says nothing any more, and the compiler would go by it. */
function isStopped({ stoppedAt }: Migration): boolean {
  return stoppedAt !== undefined;
}

function pausedByOther(): CheckpointError {
  return new CheckpointError('VM_STATE', 'the VM was paused by somebody else while its memory was streamed', {
    hint: 'it stays paused; tracker qmp-stream works on a running VM only',
    retryable: true,
  });
}

/** What `xen-save-devices-state` would have written: header, device sections, end. */
function deviceStateBlob(sections: Uint8Array): Uint8Array {
  const header = Buffer.alloc(8);
  header.writeUInt32BE(STREAM_MAGIC, 0);
  header.writeUInt32BE(STREAM_VERSION, 4);
  // A VM that Cairn stopped itself says "paused"; it was running when it was found.
  return new Uint8Array(Buffer.concat([header, withRunState(sections, 'running'), Buffer.of(SECTION.EOF)]));
}

function rootOf(error: unknown): unknown {
  return error instanceof Error && error.cause !== undefined ? error.cause : error;
}
