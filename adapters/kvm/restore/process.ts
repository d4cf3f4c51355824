/**
 * The QEMU that a restore starts: detached from Cairn, its output in a file, killed when the restore fails.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import { lstat, rm, type FileHandle } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { describeError, isCheckpointError } from '../../../src/errors.js';
import { peerPid } from '../../qemu/peer-process.js';
import { QmpClient } from '../../qemu/qmp-client.js';
import type { Command } from './start-command.js';

export interface QemuStart extends Command {
  readonly cwd: string;
  readonly qmpPath: string;
  /** Open for reading and appending; closed by the process when it is let go. */
  readonly log: FileHandle;
  /** Descriptors of this process that it gets as 3, 4 and so on. They stay the caller's. */
  readonly inherited?: readonly number[];
}

/** Number of the first one of `inherited` in the new process. */
export const FIRST_INHERITED = 3;

/** Preallocated memory and many disks take their time; a QEMU that hangs is still found out. */
const START_TIMEOUT_MS = 120_000;
const RETRY_MS = 5;
const EXIT_TIMEOUT_MS = 5000;
const LOG_TAIL_BYTES = 4096;
const LOG_TAIL_LINES = 12;

export class RestoredQemu {
  readonly #start: QemuStart;
  readonly #child: ChildProcess;
  readonly #exited: Promise<string>;
  /** Where the log ended when this process was started: what stands before it is from former processes. */
  readonly #logOffset: number;
  #exitText: string | undefined;
  #pid: number;

  private constructor(start: QemuStart, child: ChildProcess, logOffset: number) {
    this.#start = start;
    this.#child = child;
    this.#logOffset = logOffset;
    this.#pid = child.pid ?? 0;
    this.#exited = new Promise((resolve) => {
      child.once('error', (error) => resolve(`it could not be started: ${describeError(error)}`));
      child.once('exit', (code, signal) =>
        resolve(signal === null ? `it exited with status ${code ?? 0}` : `it was ended by ${signal}`),
      );
    });
    void this.#exited.then((text) => (this.#exitText = text));
  }

  /** The log is this object's from here on: `release` closes it. */
  static async start(start: QemuStart): Promise<RestoredQemu> {
    const { program, argv, cwd, env, log, inherited = [] } = start;
    const logOffset = (await log.stat()).size;
    // Not through `host/run-program.ts`: the VM outlives this process, so it has no limit.
    const stdio = ['ignore', log.fd, log.fd, ...inherited] as const;
    const child = spawn(program, argv, { cwd, env, detached: true, stdio: [...stdio] });
    child.unref();
    return new RestoredQemu(start, child, logOffset);
  }

  /** Id of the process that serves the monitor; until that is known, id of the process that was started. */
  get pid(): number {
    return this.#pid;
  }

  /** Why it has ended; undefined while it runs. */
  get exitText(): string | undefined {
    return this.#exitText;
  }

  /** Resolves when the process has ended or the time is over. */
  async waitForExit(timeoutMs: number): Promise<void> {
    // The timer keeps this process alive while it waits (the child does not), and goes when the child is
    // first.
    const over = new AbortController();
    const timer = delay(timeoutMs, undefined, { signal: over.signal }).catch(() => undefined);
    await Promise.race([this.#exited, timer]);
    over.abort();
  }

  /** @throws what the connection says when the process does not open its monitor */
  async connect(signal: AbortSignal | undefined, outOfBand = false): Promise<QmpClient> {
    const deadlineMs = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      signal?.throwIfAborted();
      try {
        const client = await QmpClient.connect(this.#start.qmpPath, {
          greetingTimeoutMs: START_TIMEOUT_MS,
          outOfBand,
          signal,
        });
        this.#pid = peerPid(client.descriptor);
        return client;
      } catch (error) {
        const notThereYet = isCheckpointError(error, 'VM_UNREACHABLE') && this.#exitText === undefined;
        if (!notThereYet || Date.now() > deadlineMs) throw error;
      }
      await this.waitForExit(RETRY_MS);
    }
  }

  /**
   * Ends it at once and takes its monitor socket away. It never ran a guest instruction, so there is nothing
   * to save.
   */
  async kill(): Promise<void> {
    for (const pid of new Set([this.#child.pid ?? 0, this.#pid])) {
      if (pid <= 0 || (pid === this.#child.pid && this.#exitText !== undefined)) continue;
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Already gone.
      }
    }
    await this.waitForExit(EXIT_TIMEOUT_MS);
    const { qmpPath } = this.#start;
    const isSocket = await lstat(qmpPath).then(
      (found) => found.isSocket(),
      () => false,
    );
    if (isSocket) await rm(qmpPath, { force: true });
  }

  /** Lets go of its log; the process has it open itself. */
  async release(): Promise<void> {
    await this.#start.log.close();
  }

  /** The last lines that QEMU wrote: its complaints, never guest memory. */
  async logTail(): Promise<string> {
    const { log } = this.#start;
    try {
      const { size } = await log.stat();
      const from = Math.max(this.#logOffset, size - LOG_TAIL_BYTES);
      const { buffer, bytesRead } = await log.read(Buffer.alloc(LOG_TAIL_BYTES), 0, LOG_TAIL_BYTES, from);
      const lines = buffer.toString('utf8', 0, bytesRead).trimEnd().split('\n');
      // The rest of a line says little, and what stood before it is needed to tell what it is.
      if (from > this.#logOffset) lines.shift();
      return lines.slice(-LOG_TAIL_LINES).join('\n');
    } catch {
      return '';
    }
  }
}
