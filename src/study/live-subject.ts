/** A running VM, sampled with the tracker that its checkpoints would use. */

import { performance } from 'node:perf_hooks';

import { chooseTracker } from '../checkpoint/trust/tracker-choice.js';
import { VmLock } from '../host/vm-lock.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import type { Vm } from '../hypervisor/vm.js';
import { recordEpochs, type RecordOptions } from './trace/recorder.js';
import { keptPages } from './sampling.js';
import type { ObservedEpoch, Subject } from './subject.js';

/** Pauses timed before the sampling begins. */
const TIMED_PAUSES = 3;

export interface LiveSubject extends Subject {
  /** Lets the VM go, its tracker stopped when this analysis was the one that armed it. */
  close(): Promise<void>;
}

/**
 * Takes the VM's lock meanwhile: the record of the tracker is harvested here, so that the next checkpoint of
 * the VM compares all pages.
 * @throws VM_LOCKED, TRACKER_UNAVAILABLE, VM_UNSUPPORTED, VM_GONE
 */
export async function openLiveSubject(
  vm: Vm,
  options: RecordOptions & { readonly tracker: string; readonly runtimeDir: string },
): Promise<LiveSubject> {
  const lock = await VmLock.take(vm, options.runtimeDir);
  let tracker: DirtyTracker | undefined;
  try {
    const layout = await vm.memory.layout();
    tracker = (await chooseTracker(vm, options.tracker)).tracker;
    const armed = tracker;
    return {
      kind: 'vm',
      name: vm.address,
      memoryBytes: layout.sizeBytes,
      epochMs: options.epochMs,
      pauseMs: await shortestPauseMs(vm),
      async *epochs(): AsyncGenerator<ObservedEpoch> {
        for await (const { runMs, pages, hasContent, before, after } of recordEpochs(
          vm,
          layout,
          armed,
          options,
        )) {
          yield { runMs, pages, contentPages: keptPages(pages, hasContent), before, after };
        }
      },
      // The tracker is stopped and not left armed: so its token changes, by which the next checkpoint knows
      // that it has to compare.
      close: async () => {
        await armed.stop();
        await lock.release();
      },
    };
  } catch (error) {
    tracker?.close();
    await lock.release();
    throw error;
  }
}

/**
 * What a pause costs before a single page is copied: stop, device state, cont. Undefined for a VM that does
 * not run.
 */
async function shortestPauseMs(vm: Vm): Promise<number | undefined> {
  const times: number[] = [];
  for (let i = 0; i < TIMED_PAUSES; i++) {
    const started = performance.now();
    const stopped = await vm.runState.pause();
    try {
      await vm.deviceState.save();
    } finally {
      await vm.runState.resume();
    }
    if (!stopped) return undefined;
    times.push(performance.now() - started);
    await vm.deviceState.take();
  }
  return Math.min(...times);
}
