/** The trackers of a QEMU: which of them can be used, and how each is made. */

import { CheckpointError } from '../../../src/errors.js';
import type { DirtyTracker, TrackerReport } from '../../../src/hypervisor/dirty-tracker.js';
import type { Monitor } from '../../qemu/monitor.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import type { KnownMemory } from '../memory/kvm-memory.js';
import type { RamBlock } from '../memory/ram-blocks.js';
import type { RunStateControl } from '../run/run-state.js';
import { COMPARE_KIND, compareReport, CompareTracker } from './compare-tracker.js';
import { kvmDirtyLogReport } from './dirty-log/support.js';
import { PAGEMAP_SCAN_KIND, pagemapScanReport } from './pagemap-scan/support.js';
import { PagemapScanTracker } from './pagemap-scan/tracker.js';
import type { StreamManager } from './qmp-stream/stream-manager.js';
import { QMP_STREAM_KIND, qmpStreamReport } from './qmp-stream/support.js';
import { QmpStreamTracker } from './qmp-stream/tracker.js';
import type { QuietVm } from './quiet-vm.js';
import { SOFT_DIRTY_KIND, softDirtyReport } from './soft-dirty/support.js';
import { SoftDirtyTracker } from './soft-dirty/tracker.js';

export interface KvmTrackersDeps {
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  readonly runtimeDir: string;
  /** Absolute path of the monitor's socket; empty when there is none of our own. */
  readonly socketPath: string;
  readonly runState: RunStateControl;
  readonly quiet: QuietVm;
  /** A manager that holds the monitor. */
  readonly streamManager: StreamManager | undefined;
  /** Called when a tracker is made that leaves the device state to its VM: gets it ready. */
  readonly prepareDevices: () => void;
}

export class KvmTrackers {
  readonly #deps: KvmTrackersDeps;

  constructor(deps: KvmTrackersDeps) {
    this.#deps = deps;
  }

  /**
   * Reports on the trackers, in the order in which they are preferred.
   * @param monitor of the look that this is a part of
   * @param blocks undefined when this process may not read QEMU's memory
   */
  async reports(
    monitor: Monitor,
    memoryBytes: number,
    blocks: readonly RamBlock[] | undefined,
  ): Promise<readonly TrackerReport[]> {
    const { process } = this.#deps;
    return [
      pagemapScanReport(process.pid),
      softDirtyReport(process.pid, blocks ?? []),
      kvmDirtyLogReport,
      compareReport(process.pid),
      await qmpStreamReport(monitor, { memoryBytes, seesSharers: blocks !== undefined }),
    ];
  }

  /**
   * Whoever asks for a tracker is about to take checkpoints. What a pause needs gets ready in the meantime.
   * @throws TRACKER_UNAVAILABLE, VM_PERMISSION
   */
  open(kind: string, memory: KnownMemory): DirtyTracker {
    const { process, runtimeDir, quiet, runState, prepareDevices } = this.#deps;
    if (kind === QMP_STREAM_KIND) {
      runState.prepare().catch(() => undefined);
      const { monitor, socketPath, streamManager: manager } = this.#deps;
      const { layout } = memory;
      return new QmpStreamTracker({ monitor, process, manager, runtimeDir, runState, layout, socketPath });
    }
    const options = { process, runtimeDir, quiet, ...memory.readable() };
    prepareDevices();
    // A failure shows again, and is reported, when the pause needs it.
    runState.prepare().catch(() => undefined);
    if (kind === PAGEMAP_SCAN_KIND) return new PagemapScanTracker(options);
    if (kind === SOFT_DIRTY_KIND) return new SoftDirtyTracker(options);
    if (kind === COMPARE_KIND) return new CompareTracker(options);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`, {
      hint: `known: ${PAGEMAP_SCAN_KIND}, ${SOFT_DIRTY_KIND}, ${COMPARE_KIND}, ${QMP_STREAM_KIND}`,
    });
  }
}
