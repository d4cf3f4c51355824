/**
 * Cairn's side of the pause guard (see `pause-guard-process.ts`): starts it, and tells it before and after
 * each pause.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';

import { CheckpointError } from '../../src/errors.js';
import type { ProcessIdentity } from '../../src/host/process-identity.js';

/** A program that speaks the protocol of `pause-guard-process.ts`. */
export interface GuardProgram {
  readonly modulePath: string;
  /** How it reaches the VM. */
  readonly args: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
}

/** What a guard is for, and how it learns whether it is needed. */
export interface Guarded {
  /**
   * The process of the VM; as long as it lives there may be something to do. Init where no process of this
   * host is the VM.
   */
  readonly process: ProcessIdentity;
  readonly markerPath: string;
  /** Path of the marker of a frozen guest; absent where no guest is ever frozen. */
  readonly frozenMarkerPath?: string;
  readonly attachment: string;
}

/** Starting Node.js takes some 50 ms, far more on a machine that swaps. */
const ANSWER_LIMIT_MS = 60_000;

export class PauseGuard {
  readonly #child: ChildProcess;
  #text = '';
  #waiting: (() => void) | undefined;
  #dead = false;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.once('exit', () => this.#die());
    child.once('error', () => this.#die());
    child.stdin?.on('error', () => this.#die());
    child.stdout?.setEncoding('latin1');
    child.stdout?.on('data', (text: string) => {
      this.#text += text;
      this.#waiting?.();
    });
    // Neither the guard nor its pipes may keep this process alive.
    child.unref();
    (child.stdin as Socket | null)?.unref();
    (child.stdout as Socket | null)?.unref();
  }

  /** Started and ready. @throws VM_STATE when it does not come up: without it nothing is paused */
  static async start(
    { modulePath, args, env }: GuardProgram,
    { process: vm, markerPath, frozenMarkerPath = '', attachment }: Guarded,
  ): Promise<PauseGuard> {
    const common = [String(vm.pid), vm.startTime, markerPath, frozenMarkerPath, attachment];
    // Not through `host/run-program.ts`: the guard outlives this process, so it has no limit.
    const child = spawn(process.execPath, [modulePath, ...common, ...args], {
      // A session of its own: a terminal's Ctrl-C and a shell's kill of the job do not reach it.
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      cwd: '/',
      env: env ?? {},
    });
    const guard = new PauseGuard(child);
    await guard.#answer('ready\n');
    return guard;
  }

  get isAlive(): boolean {
    return !this.#dead;
  }

  /**
   * From now on the guard resumes the VM when this process dies. Returns once it has confirmed.
   * @throws VM_STATE
   */
  async pausing(): Promise<void> {
    this.#child.stdin?.write('paused\n');
    await this.#answer('ok\n');
  }

  running(): void {
    if (!this.#dead) this.#child.stdin?.write('running\n');
  }

  /**
   * From now on the guard has the guest thawed when this process dies. Returns once it has confirmed.
   * @throws VM_STATE
   */
  async freezing(): Promise<void> {
    this.#child.stdin?.write('frozen\n');
    await this.#answer('ok\n');
  }

  thawed(): void {
    if (!this.#dead) this.#child.stdin?.write('thawed\n');
  }

  /**
   * Ends the guard. If it has been told of a pause or a freeze and of no end, it resumes the VM and has the
   * guest thawed: that is what it is for.
   */
  close(): void {
    this.#child.stdin?.end();
  }

  async #answer(expected: string): Promise<void> {
    // A timer that is not unref'd keeps the process alive while somebody waits for the answer.
    let timer: NodeJS.Timeout | undefined;
    const arrived = new Promise<boolean>((resolve) => {
      const look = (): void => {
        if (this.#text.includes(expected)) resolve(true);
        else if (this.#dead) resolve(false);
      };
      this.#waiting = look;
      timer = setTimeout(() => resolve(false), ANSWER_LIMIT_MS);
      look();
    });
    const isThere = await arrived;
    clearTimeout(timer);
    this.#waiting = undefined;
    this.#text = '';
    if (isThere) return;
    throw new CheckpointError(
      'VM_STATE',
      'the process that would resume the VM after a crash does not answer',
      {
        hint: 'nothing was paused; can this user start processes?',
        retryable: true,
      },
    );
  }

  #die(): void {
    this.#dead = true;
    this.#waiting?.();
  }
}
