/** A Cairn that stands still at a point of a checkpoint (`src/checkpoint/fault-points.ts`), as one does whose storage hangs. */

import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  FAULT_POINTS,
  REWIND_FAULT_POINTS,
  type FaultPoint,
  type RewindFaultPoint,
} from '../../../src/checkpoint/fault-points.js';
import { CairnProcess, type CliOptions, type CliResult } from './cairn-cli.js';

/** The VM stands still there. */
export const IN_PAUSE: readonly FaultPoint[] = ['afterPause', 'duringCopy', 'beforeResume'];

export class StoppedCairn {
  readonly #process: CairnProcess;

  private constructor(process: CairnProcess) {
    this.#process = process;
  }

  /** Returns when it stands still. Throws when it ends before. */
  static async at(
    point: FaultPoint | RewindFaultPoint,
    args: readonly string[],
    options: CliOptions,
  ): Promise<StoppedCairn> {
    const env = {
      ...options.env,
      CAIRN_FAULT_POINT: `${{ ...FAULT_POINTS, ...REWIND_FAULT_POINTS }[point]}`,
      CAIRN_FAULT_SIGNAL: 'SIGSTOP',
    };
    const stopped = new StoppedCairn(new CairnProcess(args, { ...options, env }));
    while (!stopped.isStopped()) {
      if (stopped.#process.isOver)
        throw new Error(`cairn did not come to ${point}: ${JSON.stringify(await stopped.#process.ended)}`);
      await sleep(5);
    }
    return stopped;
  }

  /** True until it is continued or killed. */
  isStopped(): boolean {
    return isStandingStill(this.#pid);
  }

  /** It wakes. @param signal what it finds then, sent while it stood still */
  goOn(signal?: NodeJS.Signals): Promise<CliResult> {
    if (signal !== undefined) process.kill(this.#pid, signal);
    process.kill(this.#pid, 'SIGCONT');
    return this.#process.ended;
  }

  /** Kills it and every process that it has started, guards included. @returns how many those were */
  async killWithGuards(): Promise<number> {
    const guards = childrenOf(this.#pid);
    for (const pid of guards) process.kill(pid, 'SIGKILL');
    process.kill(this.#pid, 'SIGKILL');
    await this.#process.ended;
    while (guards.some(isAlive)) await sleep(5);
    return guards.length;
  }

  get #pid(): number {
    return this.#process.child.pid!;
  }
}

/**
 * All files of a repository: also what a checkpoint leaves behind without a manifest. Without locks: that of a Cairn that
 * was killed goes with the next one.
 */
export function storedObjects(repo: string): readonly string[] {
  return readdirSync(repo, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && basename(entry.parentPath) !== 'locks')
    .map(({ parentPath, name }) => join(parentPath, name))
    .sort();
}

/** Files that say that a VM stands still or is being streamed. @param dir of `CliOptions` */
export function pauseMarkers(dir: string): readonly string[] {
  return readdirSync(join(dir, 'runtime')).filter((name) => /^(paused|stream)-/.test(name));
}

/** Whether this event of QEMU says that the VM stands still, or that it runs. */
export function isRunEvent(event: string): boolean {
  return event === 'STOP' || event === 'RESUME';
}

/** Processes that a process has started, by whichever thread, and that live. */
export function childrenOf(pid: number): readonly number[] {
  return readdirSync(`/proc/${pid}/task`)
    .flatMap((thread) => readFileSync(`/proc/${pid}/task/${thread}/children`, 'latin1').split(' '))
    .filter((word) => word !== '')
    .map(Number);
}

/** False for one that has ended and that nobody has waited for. */
export function isAlive(pid: number): boolean {
  return !['', 'Z', 'X'].includes(stateOf(pid));
}

/** By SIGSTOP. */
export function isStandingStill(pid: number): boolean {
  return stateOf(pid) === 'T';
}

/** The letter of proc(5); empty when there is no such process. */
function stateOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2)[0] ?? '';
  } catch {
    return '';
  }
}
