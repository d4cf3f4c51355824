/**
 * The pause guard: a process of its own that outlives a Cairn killed in the pause and resumes the VM. What is common to
 * all ways of reaching a VM; `pause-guard-main.ts` is the one through QMP.
 *
 *     stdin   "paused\n" before the VM is stopped, "running\n" when it runs again; end of file when Cairn is gone
 *     stdout  "ready\n" at the start, "ok\n" for each "paused"
 */

import { setTimeout as sleep } from 'node:timers/promises';

export interface GuardOptions {
  /** @returns true when there is nothing more to do: the VM runs, or it is gone */
  readonly resumeOnce: () => Promise<boolean>;
  readonly retryMs: number;
  readonly giveUpMs: number;
}

/** Never returns to its caller's end: the process exits when Cairn is gone and nothing is left to do. */
export function runPauseGuard(options: GuardOptions): void {
  let isPaused = false;
  let unread = '';
  const finish = async (): Promise<void> => {
    const until = Date.now() + options.giveUpMs;
    while (isPaused && Date.now() < until) {
      if (await options.resumeOnce()) break;
      await sleep(options.retryMs);
    }
    process.exit(0);
  };
  process.stdin.setEncoding('latin1');
  process.stdin.on('data', (text: string) => {
    unread += text;
    for (let end = unread.indexOf('\n'); end >= 0; end = unread.indexOf('\n')) {
      isPaused = unread.slice(0, end) === 'paused';
      unread = unread.slice(end + 1);
      if (isPaused) process.stdout.write('ok\n');
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
