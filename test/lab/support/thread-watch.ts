/** The threads of a QEMU process as /proc shows them: whether a tracer has left a trace on any of them. */

import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

interface ThreadState {
  readonly state: string;
  readonly tracer: number;
  /** Blocked and ignored signals. */
  readonly masks: string;
}

/** Threads change their masks for moments themselves: KVM's while they run the guest. */
const SAMPLES = 40;
const SAMPLE_MS = 5;
const SETTLE_MS = 5000;

export class ThreadWatch {
  readonly #pid: number;
  /** Of each thread, all masks that it was seen with before anybody traced it. */
  readonly #masks = new Map<number, Set<string>>();

  private constructor(pid: number) {
    this.#pid = pid;
  }

  static async start(pid: number): Promise<ThreadWatch> {
    const watch = new ThreadWatch(pid);
    for (let sample = 0; sample < SAMPLES; sample++) {
      for (const [thread, { masks }] of watch.#threads()) {
        const seen = watch.#masks.get(thread) ?? new Set();
        watch.#masks.set(thread, seen.add(masks));
      }
      await sleep(SAMPLE_MS);
    }
    return watch;
  }

  /** Whether this process traces one of the threads at this moment. */
  isTracedBy(tracer: number): boolean {
    return [...this.#threads().values()].some((thread) => thread.tracer === tracer);
  }

  /** What is not as it was, empty when all is well; what passes by itself has some seconds for it. */
  async faults(): Promise<readonly string[]> {
    const until = Date.now() + SETTLE_MS;
    for (;;) {
      const threads = this.#threads();
      if (threads.size === 0) return ['QEMU has ended'];
      const faults = [...threads].flatMap(([thread, state]) => this.#faultsOf(thread, state));
      if (faults.length === 0 || Date.now() > until) return faults;
      await sleep(SAMPLE_MS);
    }
  }

  #faultsOf(thread: number, { state, tracer, masks }: ThreadState): readonly string[] {
    const known = this.#masks.get(thread);
    return [
      ...(state === 't' || state === 'T' ? [`thread ${thread} is stopped`] : []),
      ...(tracer === 0 ? [] : [`process ${tracer} traces thread ${thread}`]),
      ...(known === undefined || known.has(masks) ? [] : [`thread ${thread} has the masks ${masks}`]),
    ];
  }

  #threads(): ReadonlyMap<number, ThreadState> {
    const threads = new Map<number, ThreadState>();
    for (const name of read(() => readdirSync(`/proc/${this.#pid}/task`)) ?? []) {
      const status = read(() => readFileSync(`/proc/${this.#pid}/task/${name}/status`, 'latin1'));
      const field = (key: string): string =>
        new RegExp(`^${key}:\\s*(\\S+)`, 'm').exec(status ?? '')?.[1] ?? '';
      if (status === undefined || field('State') === 'Z') continue;
      threads.set(Number(name), {
        state: field('State'),
        tracer: Number(field('TracerPid')),
        masks: `${field('SigBlk')} ${field('SigIgn')}`,
      });
    }
    return threads;
  }
}

/** Undefined for what has ended meanwhile. */
function read<T>(from: () => T): T | undefined {
  try {
    return from();
  } catch {
    return undefined;
  }
}
