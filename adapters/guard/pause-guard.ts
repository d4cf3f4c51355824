/**
 * Cairn's side of the pause guard (see `pause-guard-process.ts`): starts it, and tells it before and after
 * each pause.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';

import { CheckpointError } from '../../src/errors.js';
import { sendWithDescriptor } from '../../src/ffi/send-descriptor.js';
import type { ProcessIdentity } from '../../src/host/process-identity.js';
import { descriptorOf } from '../../src/host/socket-descriptor.js';

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
  /**
   * Descriptor of the connection by which Cairn commands the VM. The guard cuts it before it takes a pause
   * away, so that whatever Cairn sends later is not carried out. Absent where a manager has the connection.
   */
  readonly connection?: number | undefined;
}

/**
 * Cairn itself ends a pause at its limit. When it has not done so after this much more, it hangs, and the
 * guard does.
 */
const GUARD_GRACE_MS = 500;

/** Starting Node.js takes some 50 ms, far more on a machine that swaps. */
const ANSWER_LIMIT_MS = 60_000;

export class PauseGuard {
  readonly #child: ChildProcess;
  /** Carries connections to the guard. */
  readonly #descriptors: Socket;
  #text = '';
  #waiting: (() => void) | undefined;
  #dead = false;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#descriptors = child.stdio[3] as Socket;
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
    this.#descriptors.on('error', () => undefined);
    this.#descriptors.unref();
  }

  /** Started and ready. @throws VM_STATE when it does not come up: without it nothing is paused */
  static async start(
    { modulePath, args, env }: GuardProgram,
    { process: vm, markerPath, frozenMarkerPath = '', attachment, connection }: Guarded,
  ): Promise<PauseGuard> {
    const common = [String(vm.pid), vm.startTime, markerPath, frozenMarkerPath, attachment];
    // Not through `host/run-program.ts`: the guard outlives this process, so it has no limit.
    const child = spawn(process.execPath, [modulePath, ...common, ...args], {
      // A session of its own: a terminal's Ctrl-C and a shell's kill of the job do not reach it.
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore', 'pipe'],
      cwd: '/',
      env: env ?? {},
    });
    const guard = new PauseGuard(child);
    await guard.#answer('ready\n');
    if (connection !== undefined && connection >= 0) guard.handOver(connection, 'end');
    return guard;
  }

  get isAlive(): boolean {
    return !this.#dead;
  }

  /**
   * Another connection that the guard cuts when it takes a pause away. It stays the caller's to close, who
   * ends it in both directions (shutdown): the guard has it, too, until it hears the word.
   */
  handOver(connection: number, until: 'running' | 'thawed' | 'end'): void {
    if (this.#dead) return;
    sendWithDescriptor(descriptorOf(this.#descriptors), Buffer.of(0), connection);
    this.#child.stdin?.write(`connection ${until}\n`);
  }

  /**
   * The marker is set. From now on the guard resumes the VM when this process dies, or has not said the end
   * of the pause a moment after the limit. Returns once it has confirmed.
   * @throws VM_STATE
   */
  async pausing(limitMs: number): Promise<void> {
    this.#child.stdin?.write(`paused ${limitMs + GUARD_GRACE_MS}\n`);
    await this.#answer('ok\n');
  }

  /** The limit counts from now. */
  within(limitMs: number): void {
    if (!this.#dead) this.#child.stdin?.write(`within ${limitMs + GUARD_GRACE_MS}\n`);
  }

  /**
   * The marker says that the VM is being rewound, by which the guard goes: it leaves the VM paused, whatever becomes of
   * this process. It need not be waited for.
   */
  rewinding(): void {
    if (!this.#dead) this.#child.stdin?.write('rewinding\n');
  }

  /** The marker is the plain one again, and the VM stands still. A guard that has not heard it yet hears it first. */
  rewound(limitMs: number): void {
    if (!this.#dead) this.#child.stdin?.write(`rewound ${limitMs + GUARD_GRACE_MS}\n`);
  }

  running(): void {
    if (!this.#dead) this.#child.stdin?.write('running\n');
  }

  /**
   * The marker is set. From now on the guard has the guest thawed when this process dies, or has not said
   * the end of the freeze a moment after the limit. Returns once it has confirmed.
   * @throws VM_STATE
   */
  async freezing(limitMs: number): Promise<void> {
    this.#child.stdin?.write(`frozen ${limitMs + GUARD_GRACE_MS}\n`);
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
    this.#descriptors.destroy();
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
    this.#descriptors.destroy();
    this.#waiting?.();
  }
}
