/**
 * The pause guard: a process of its own that outlives a Cairn killed in the pause and resumes the VM, and
 * takes the pause away from a Cairn that hangs in it. What is common to all ways of reaching a VM;
 * `pause-guard-main.ts` is the one through QMP.
 *
 *     argv    process id of the VM, its start time, path of the pause marker, path of the marker of a frozen
 *             guest, attachment it is for; then what the way needs
 *     stdin   "paused MS\n" once the marker is set and before the VM is stopped, "running\n" when it runs
 *             again; "frozen MS\n" once the other marker is set and before the guest is told to freeze,
 *             "thawed\n" when it is thawed; "rewinding\n" once the marker says that the VM is being rewound,
 *             "rewound MS\n" once it is the plain one again; "within MS\n" for another MS milliseconds from now;
 *             "connection UNTIL\n" when there is one on descriptor 3, which Cairn uses until the next
 *             "running" or "thawed" or to its "end"; end of file when Cairn is gone
 *     stdout  "ready\n" at the start, "ok\n" for each "paused" and "frozen"
 *     3       connections of Cairn to the VM (SCM_RIGHTS)
 *
 * The VM is resumed first: a guest that stands still cannot thaw.
 *
 * The marker says whether there is anything to do: the guard goes on as long as the marker of its attachment
 * is there and that VM lives, and takes the marker away once the VM runs. Without a marker nothing was
 * paused, or somebody has seen to it since: it leaves the VM alone.
 *
 * MS milliseconds after such a word the pause is taken away from Cairn, in this order:
 *
 *     marker: resuming -> connections of Cairn are cut -> VM resumed, guest thawed -> marker: resumed
 *
 * So whatever Cairn did in the pause before it finds the marker merely set was done while the VM stood still.
 * A monitor that serves one client serves the guard from then on, and Cairn's commands come to nothing.
 */

import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { receiveDescriptor } from '../../src/ffi/receive-descriptor.js';
import { shutDownSocket } from '../../src/ffi/socket-pair.js';
import { isSameProcess, type ProcessIdentity } from '../../src/host/process-identity.js';
import {
  clearPauseMarker,
  isRewinding,
  readPauseMarker,
  setTakenAway,
  type TakenAway,
} from './pause-marker.js';

/** Whoever has kept the guard from the VM for this long does so for good: try less often. */
const PATIENT_AFTER_MS = 30_000;
const PATIENT_RETRY_MS = 1000;
/** Where Cairn's connections come in. */
const CONNECTIONS = 3;

/**
 * `ran`: nobody had to resume it. Where Cairn's connection cannot be cut, a Cairn that wakes may still stop
 * it.
 */
export type ResumeOutcome = boolean | 'ran';

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
  ) => Promise<ResumeOutcome>;
  /**
   * Has the guest thawed, where guests are frozen.
   * @returns true when it is; also a failure means another try
   */
  readonly thawOnce?: (moreArgs: readonly string[]) => Promise<boolean>;
  /** For a VM that takes its time to stop: the limit counts from when it stands still. */
  readonly standsStill?: (moreArgs: readonly string[]) => Promise<boolean>;
  readonly retryMs: number;
}

/** Never returns to its caller's end: the process exits when Cairn is gone and nothing is left to do. */
export function runPauseGuard(options: GuardOptions): void {
  const guard = new GuardProcess(options, process.argv.slice(2));
  let unread = '';
  process.stdin.setEncoding('latin1');
  process.stdin.on('data', (text: string) => {
    const lines = (unread + text).split('\n');
    unread = lines.pop() ?? '';
    for (const line of lines) guard.hear(line);
  });
  // Signals meant for Cairn's process group must not take the guard along.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const)
    process.on(signal, () => undefined);
  // The reader of these lines may be the process whose end this one is waiting for.
  process.stdout.on('error', () => undefined);
  process.stdin.once('end', () => void guard.finish());
  process.stdin.once('error', () => void guard.finish());
  process.stdout.write('ready\n');
}

class GuardProcess {
  readonly #options: GuardOptions;
  readonly #vm: ProcessIdentity;
  readonly #attachment: string;
  readonly #markers: { readonly paused: string; readonly frozen: string };
  readonly #moreArgs: readonly string[];
  readonly #is = { paused: false, frozen: false };
  readonly #timers: Partial<Record<'paused' | 'frozen', NodeJS.Timeout>> = {};
  #connections: { readonly descriptor: number; readonly until: string }[] = [];
  /** Markers that could not be written, of pauses that are being taken away. */
  readonly #unmarked = new Set<string>();
  /** Pauses that are being taken away, one after the other. */
  #taking: Promise<void> = Promise.resolve();
  #isCairnGone = false;

  constructor(options: GuardOptions, argv: readonly string[]) {
    const [pid = '', startTime = '', paused = '', frozen = '', attachment = '', ...moreArgs] = argv;
    this.#options = options;
    this.#vm = { pid: Number(pid), startTime };
    this.#attachment = attachment;
    this.#markers = { paused, frozen };
    this.#moreArgs = moreArgs;
  }

  hear(line: string): void {
    const [word = '', argument = ''] = line.split(' ');
    switch (word) {
      case 'paused':
      case 'frozen':
        this.#is[word] = true;
        this.#arm(word, Number(argument));
        process.stdout.write('ok\n');
        return;
      case 'within':
        if (this.#is.paused) this.#arm('paused', Number(argument));
        return;
      case 'rewinding':
        this.#forget();
        return;
      case 'rewound':
        this.#is.paused = true;
        this.#arm('paused', Number(argument));
        return;
      case 'running':
        this.#over('paused', word);
        return;
      case 'thawed':
        this.#over('frozen', word);
        return;
      case 'connection': {
        const descriptor = receiveDescriptor(CONNECTIONS);
        if (descriptor !== undefined) this.#connections.push({ descriptor, until: argument });
      }
    }
  }

  /** Cairn is gone, or has let the guard go: it sees to what it was told of and not told the end of. */
  async finish(): Promise<void> {
    this.#isCairnGone = true;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    // Not cut: a Cairn that lives goes on with its connections.
    this.#closeConnections();
    await this.#taking;
    await this.#see();
    for (const marker of Object.values(this.#markers))
      if (this.#isOwn(marker, 'resumed')) clearPauseMarker(marker);
    process.exit(0);
  }

  #over(what: 'paused' | 'frozen', word: string): void {
    this.#is[what] = false;
    this.#closeConnections(({ until }) => until === word);
    this.#unmarked.delete(this.#markers[what]);
    clearTimeout(this.#timers[what]);
    // Cairn has cleared it; it may have been written once more in that moment.
    const marker = this.#markers[what];
    if (this.#isOwn(marker, 'resuming') || this.#isOwn(marker, 'resumed')) clearPauseMarker(marker);
  }

  /**
   * A VM that is being rewound must not run before that is done, whatever becomes of Cairn. A pause that was taken away
   * before is resumed all the same: Cairn finds that in the marker and has written nothing yet.
   */
  #forget(): void {
    if (this.#isOwn(this.#markers.paused, 'resuming')) return;
    this.#is.paused = false;
    clearTimeout(this.#timers.paused);
  }

  #arm(what: 'paused' | 'frozen', limitMs: number): void {
    clearTimeout(this.#timers[what]);
    this.#timers[what] = setTimeout(() => void this.#expire(what, limitMs), limitMs);
  }

  async #expire(what: 'paused' | 'frozen', limitMs: number): Promise<void> {
    const { standsStill, retryMs } = this.#options;
    const hasStood = standsStill === undefined || (await standsStill(this.#moreArgs).catch(() => true));
    if (!this.#is[what] || this.#isCairnGone || this.#isRewinding()) return;
    if (hasStood) this.#taking = this.#taking.then(() => this.#takeAway());
    else this.#timers[what] = setTimeout(() => void this.#awaitStandstill(limitMs), retryMs);
  }

  async #awaitStandstill(limitMs: number): Promise<void> {
    const { standsStill, retryMs } = this.#options;
    const stands = (await standsStill?.(this.#moreArgs).catch(() => true)) ?? true;
    if (!this.#is.paused || this.#isCairnGone) return;
    if (stands) this.#arm('paused', limitMs);
    else this.#timers.paused = setTimeout(() => void this.#awaitStandstill(limitMs), retryMs);
  }

  async #takeAway(): Promise<void> {
    for (const marker of Object.values(this.#markers)) this.#mark(marker, 'resuming');
    for (const { descriptor } of this.#connections) shutDownSocket(descriptor);
    this.#closeConnections();
    await this.#see();
  }

  /** A folder without room must not keep the VM paused: then the marker goes, which tells Cairn as well. */
  #mark(marker: string, how: TakenAway): void {
    try {
      setTakenAway(marker, this.#attachment, how);
    } catch {
      if (how === 'resuming') this.#unmarked.add(marker);
      clearPauseMarker(marker);
    }
    if (how === 'resumed') this.#unmarked.delete(marker);
  }

  async #see(): Promise<void> {
    const { resumeOnce, thawOnce } = this.#options;
    const { paused, frozen } = this.#markers;
    const isPaused = (): Promise<boolean> => Promise.resolve(this.#is.paused && this.#isUnseen(paused));
    const isFrozen = (): Promise<boolean> => Promise.resolve(this.#is.frozen && this.#isUnseen(frozen));
    await this.#seeTo(isPaused, () => resumeOnce(this.#vm, this.#moreArgs, isPaused), paused);
    if (thawOnce !== undefined) await this.#seeTo(isFrozen, () => thawOnce(this.#moreArgs), frozen);
  }

  /** Tries for as long as it is needed and the VM lives. */
  async #seeTo(
    isNeeded: () => Promise<boolean>,
    tryOnce: () => Promise<ResumeOutcome>,
    marker: string,
  ): Promise<void> {
    const patientFrom = Date.now() + PATIENT_AFTER_MS;
    while ((await isNeeded()) && (await isSameProcess(this.#vm.pid, this.#vm.startTime))) {
      const outcome = await tryOnce().catch(() => false);
      if (outcome === true || (outcome === 'ran' && this.#isCairnGone)) {
        if (!(await isNeeded())) return;
        if (!this.#isCairnGone) this.#mark(marker, 'resumed');
        else if (!this.#unmarked.delete(marker)) clearPauseMarker(marker);
        return;
      }
      await sleep(Date.now() < patientFrom ? this.#options.retryMs : PATIENT_RETRY_MS);
    }
  }

  #isUnseen(path: string): boolean {
    if (this.#unmarked.has(path)) return true;
    const marker = readPauseMarker(path);
    return marker?.attachment === this.#attachment && marker.takenAway !== 'resumed' && !isRewinding(marker);
  }

  /** The word for it is on its way. */
  #isRewinding(): boolean {
    return isRewinding(readPauseMarker(this.#markers.paused));
  }

  #isOwn(path: string, takenAway: TakenAway): boolean {
    const marker = readPauseMarker(path);
    return marker?.attachment === this.#attachment && marker.takenAway === takenAway;
  }

  #closeConnections(which: (one: { readonly until: string }) => boolean = () => true): void {
    for (const one of this.#connections) if (which(one)) closeSync(one.descriptor);
    this.#connections = this.#connections.filter((one) => !which(one));
  }
}
