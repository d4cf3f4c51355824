/**
 * The pause guard: a process of its own that outlives a Cairn killed in the pause and resumes the VM. What is
 * common to all ways of reaching a VM; `pause-guard-main.ts` is the one through QMP.
 *
 *     argv    process id of the VM, its start time, path of the pause marker, path of the marker of a frozen
 *             guest, attachment it is for; then what the way needs
 *     stdin   "paused\n" before the marker is set and the VM stopped, "running\n" when it runs again;
 *             "frozen\n" before the other marker is set and the guest told to freeze, "thawed\n" when it is
 *             thawed; end of file when Cairn is gone
 *     stdout  "ready\n" at the start, "ok\n" for each "paused" and "frozen"
 *
 * The VM is resumed first: a guest that stands still cannot thaw.
 *
 * The marker says whether there is anything to do: the guard goes on as long as the marker of its attachment
 * is there and that QEMU lives, and takes the marker away once the VM runs. Without a marker nothing was
 * paused, or somebody has seen to it since: it leaves the VM alone.
 */

import { setTimeout as sleep } from 'node:timers/promises';

import { isSameProcess, type ProcessIdentity } from '../../src/host/process-identity.js';
import { clearPauseMarker, readPauseMarker } from './pause-marker.js';

/** Whoever has kept the guard from the VM for this long does so for good: try less often. */
const PATIENT_AFTER_MS = 30_000;
const PATIENT_RETRY_MS = 1000;

export interface GuardOptions {
  /**
   * @param isLeft to be asked once more right before the VM is resumed: the way to it takes time, in which
   *   others may have resumed it and its operator have paused it
   * @returns true when the VM runs or was not left any more; also a failure means another try
   */
  readonly resumeOnce: (
    vm: ProcessIdentity,
    moreArgs: readonly string[],
    isLeft: () => Promise<boolean>,
  ) => Promise<boolean>;
  /**
   * Has the guest thawed, where guests are frozen.
   * @returns true when it is; also a failure means another try
   */
  readonly thawOnce?: (moreArgs: readonly string[]) => Promise<boolean>;
  readonly retryMs: number;
}

/** Never returns to its caller's end: the process exits when Cairn is gone and nothing is left to do. */
export function runPauseGuard({ resumeOnce, thawOnce, retryMs }: GuardOptions): void {
  const [pid = '', startTime = '', markerPath = '', frozenPath = '', attachment = '', ...moreArgs] =
    process.argv.slice(2);
  const vm = { pid: Number(pid), startTime };
  let isPaused = false;
  let isFrozen = false;
  let unread = '';
  const isLeft = async (): Promise<boolean> =>
    isPaused && (await readPauseMarker(markerPath))?.attachment === attachment;
  const isLeftFrozen = async (): Promise<boolean> =>
    isFrozen && (await readPauseMarker(frozenPath))?.attachment === attachment;
  /** Tries for as long as it is needed and the VM lives. */
  const see = async (
    isNeeded: () => Promise<boolean>,
    tryOnce: () => Promise<boolean>,
    marker: string,
  ): Promise<void> => {
    const patientFrom = Date.now() + PATIENT_AFTER_MS;
    while ((await isNeeded()) && (await isSameProcess(vm.pid, startTime))) {
      if (await tryOnce().catch(() => false)) {
        if (await isNeeded()) clearPauseMarker(marker);
        break;
      }
      await sleep(Date.now() < patientFrom ? retryMs : PATIENT_RETRY_MS);
    }
  };
  const finish = async (): Promise<void> => {
    await see(isLeft, () => resumeOnce(vm, moreArgs, isLeft), markerPath);
    if (thawOnce !== undefined) await see(isLeftFrozen, () => thawOnce(moreArgs), frozenPath);
    process.exit(0);
  };
  process.stdin.setEncoding('latin1');
  process.stdin.on('data', (text: string) => {
    unread += text;
    for (let end = unread.indexOf('\n'); end >= 0; end = unread.indexOf('\n')) {
      const word = unread.slice(0, end);
      unread = unread.slice(end + 1);
      if (word === 'paused' || word === 'running') isPaused = word === 'paused';
      if (word === 'frozen' || word === 'thawed') isFrozen = word === 'frozen';
      if (word === 'paused' || word === 'frozen') process.stdout.write('ok\n');
    }
  });
  // Signals meant for Cairn's process group must not take the guard along.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
  // The reader of these lines may be the process whose end this one is waiting for.
  process.stdout.on('error', () => undefined);
  process.stdin.once('end', () => void finish());
  process.stdin.once('error', () => void finish());
  process.stdout.write('ready\n');
}
