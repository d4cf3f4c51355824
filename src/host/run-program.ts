/**
 * Running other programs: the one way to do it for the core and for every adapter.
 *
 * Every program has a limit, an environment in which its messages are in English (LC_ALL=C), and a bound on
 * what is kept of its output. How it ended is a value, not an exception: the caller knows which error that is
 * and what the operator can do.
 *
 * Processes that are meant to outlive Cairn or its call are started where they belong: the guards
 * (`adapters/guard/pause-guard.ts`), the tracers (`adapters/kvm/trackers/pagemap-scan/tracer/tracer.ts`), the
 * QEMU of a restore (`adapters/kvm/restore/process.ts`), who fills its memory (`src/restore/lazy/page-server.ts`), and who ends
 * the children of a fork that was cut off (`adapters/kvm/fork/keeper.ts`).
 */

import type { Socket } from 'node:net';
import { Readable, type Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';

import type { ResultPromise } from 'execa';

import { describeError } from '../errors.js';

export type ProgramResult =
  | { readonly kind: 'done'; readonly stdout: string }
  /** `text` is what it said on stderr, or how it ended. */
  | { readonly kind: 'failed'; readonly text: string }
  /** Ended by the limit: what it has done is not known. */
  | { readonly kind: 'late' }
  /** Ended because the caller's signal was aborted: what it has done is not known. */
  | { readonly kind: 'interrupted' }
  | { readonly kind: 'missing' };

export interface ProgramOptions {
  /**
   * A program that runs for longer is ended. One that `startProgram` feeds may run for as long as it makes
   * progress.
   */
  readonly limitMs: number;
  /** Once aborted, the program is ended. */
  readonly signal?: AbortSignal | undefined;
  /** The whole environment; without it, that of Cairn with LC_ALL=C. */
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** Written to the standard input, which is empty otherwise. */
  readonly input?: string;
  /** `ignore` for output that nobody reads, which then has no bound. */
  readonly stdout?: 'text' | 'ignore';
  /** `inherit` for a command of the operator, whose complaints are for the operator's eyes. */
  readonly stderr?: 'text' | 'inherit';
  /** A program that writes more to stdout is ended and counts as failed. */
  readonly maxOutputBytes?: number;
  /**
   * A shell command: what it started ends with it, and at once. Otherwise the program alone is asked to end,
   * and has a moment to do so.
   */
  readonly isShellCommand?: boolean;
}

/** A program that reads or writes a stream of unknown length. */
export interface RunningProgram {
  readonly stdin: Writable;
  /** The caller reads it by `for await`. */
  readonly stdout: Readable;
  /** Never rejects. `stdout` of the result is empty. */
  readonly ended: Promise<ProgramResult>;
  /** Ends it. */
  readonly kill: () => void;
}

export type RunProgram = typeof runProgram;

const MAX_OUTPUT_BYTES = 16 << 20;
/** Kept of stderr: its beginning. The rest is read and dropped, so that the program is not held up. */
const MAX_SAID_CHARS = 64 << 10;
/** A program has this long after SIGTERM: lvm ignores that signal while it must not be disturbed. */
const TERM_GRACE_MS = 3000;
/**
 * What was sent SIGKILL is given up after this: a child of the program may still hold its pipes, and a
 * process in a hung call into the kernel does not end.
 */
const KILL_GRACE_MS = 1000;
const CHECKS_PER_LIMIT = 10;

/** The environment of Cairn, with messages in English: some are read by programs. */
export function englishEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, LC_ALL: 'C' };
}

/** Runs it to its end. Never rejects. */
export async function runProgram(
  program: string,
  args: readonly string[],
  options: ProgramOptions,
): Promise<ProgramResult> {
  const launched = await launch(program, args, options, {
    stdin: options.input === undefined ? 'ignore' : 'pipe',
    bufferStdout: true,
  });
  const timer = setTimeout(launched.isLate, options.limitMs);
  try {
    return await launched.ended;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Starts a program that the caller feeds or reads. The limit is for standing still: it counts while the
 * program takes nothing of what it was given, or was given all of it, and has written nothing that the caller
 * has not read.
 */
export async function startProgram(
  program: string,
  args: readonly string[],
  options: Omit<ProgramOptions, 'input' | 'maxOutputBytes'>,
): Promise<RunningProgram> {
  const { subprocess, ended, isLate, kill } = await launch(program, args, options, {
    stdin: 'pipe',
    bufferStdout: false,
  });
  const stdin = subprocess.stdin as unknown as Socket;
  const stdout = subprocess.stdout as unknown as Socket | null;
  // What goes wrong with the pipe shows in how the program ends.
  stdin.on('error', () => undefined);
  // Otherwise execa throws away what comes before somebody reads.
  stdout?.pause();
  let progress = -1;
  let stillSince = Date.now();
  const watch = setInterval(() => {
    const takenOrWritten = stdin.bytesWritten - stdin.writableLength + (stdout?.bytesRead ?? 0);
    const isOwed = stdin.writableLength > 0 || stdin.writableFinished || stdin.destroyed;
    const isRead = stdout === null || (stdout.listenerCount('readable') > 0 && stdout.readableLength === 0);
    if (takenOrWritten !== progress || !isOwed || !isRead) stillSince = Date.now();
    progress = takenOrWritten;
    if (Date.now() - stillSince > options.limitMs) isLate();
  }, options.limitMs / CHECKS_PER_LIMIT);
  return {
    stdin,
    stdout: stdout ?? Readable.from([]),
    ended: ended.finally(() => clearInterval(watch)),
    kill,
  };
}

/**
 * What went wrong, in words that name the program; empty when nothing did.
 * @param program and what it was to do
 * @param packageName in which Debian has it, where that is not its own name
 */
export function failureOf(program: string, result: ProgramResult, packageName?: string): string {
  switch (result.kind) {
    case 'done':
      return '';
    case 'failed':
      return result.text;
    case 'late':
      return `${program} did not end in time`;
    case 'interrupted':
      return `${program} was interrupted`;
    case 'missing': {
      const name = program.replace(/ .*/, '');
      return `${name} is not installed (package ${packageName ?? name})`;
    }
  }
}

interface Launched {
  readonly subprocess: Pick<ResultPromise, 'stdin' | 'stdout'>;
  readonly ended: Promise<ProgramResult>;
  readonly isLate: () => void;
  readonly kill: () => void;
}

/**
 * Loaded with the first program, not at the start: execa is some 100 ms of modules, which most commands never
 * need.
 */
async function launch(
  program: string,
  args: readonly string[],
  options: ProgramOptions,
  streams: { readonly stdin: 'pipe' | 'ignore'; readonly bufferStdout: boolean },
): Promise<Launched> {
  const { execa } = await import('execa');
  const { signal, isShellCommand = false, maxOutputBytes = MAX_OUTPUT_BYTES } = options;
  const subprocess = execa(program, args, {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.input === undefined ? { stdin: streams.stdin } : { input: options.input }),
    stdout: options.stdout === 'ignore' ? 'ignore' : 'pipe',
    stderr: options.stderr === 'inherit' ? 'inherit' : 'pipe',
    env: options.env ?? englishEnvironment(),
    extendEnv: false,
    reject: false,
    stripFinalNewline: false,
    buffer: { stdout: streams.bufferStdout, stderr: false },
    maxBuffer: maxOutputBytes,
    forceKillAfterDelay: TERM_GRACE_MS,
    // Cairn handles the signals that it gets; lvm must not be ended in the middle because Cairn ends.
    cleanup: false,
    // A process group of its own, so that all of it can be ended.
    detached: isShellCommand,
  });
  let said = '';
  subprocess.stderr?.setEncoding('utf8').on('data', (text: string) => {
    if (said.length < MAX_SAID_CHARS) said = (said + text).slice(0, MAX_SAID_CHARS);
  });
  let forced: 'late' | 'interrupted' | undefined;
  let giveUp: (() => void) | undefined;
  const givenUp = new Promise<void>((resolve) => (giveUp = resolve));
  const over = new AbortController();
  const kill = (): void => {
    if (isShellCommand) killGroup(subprocess.pid);
    else subprocess.kill('SIGTERM');
    const graceMs = (isShellCommand ? 0 : TERM_GRACE_MS) + KILL_GRACE_MS;
    delay(graceMs, undefined, { signal: over.signal }).then(giveUp, () => undefined);
  };
  const force = (why: 'late' | 'interrupted'): void => {
    if (forced !== undefined || over.signal.aborted) return;
    forced = why;
    kill();
  };
  const onAbort = (): void => force('interrupted');
  signal?.addEventListener('abort', onAbort, { once: true });
  if (signal?.aborted === true) onAbort();
  const finished = subprocess.then(
    (result): ProgramResult => {
      if (!result.failed) return { kind: 'done', stdout: textOf(result.stdout) };
      if (result.code === 'ENOENT') return { kind: 'missing' };
      if (result.isMaxBuffer)
        return { kind: 'failed', text: `it wrote more than ${maxOutputBytes} bytes, and was ended` };
      const complaint = said.trim().replaceAll(/\s*\n\s*/g, '; ');
      if (complaint !== '') return { kind: 'failed', text: complaint };
      const how = result.signal ?? (result.exitCode === undefined ? undefined : `status ${result.exitCode}`);
      return { kind: 'failed', text: how === undefined ? describeError(result) : `it ended with ${how}` };
    },
    (error: unknown): ProgramResult => ({ kind: 'failed', text: describeError(error) }),
  );
  const ended = Promise.race([finished, givenUp])
    .then((result): ProgramResult => {
      if (forced !== undefined) return { kind: forced };
      return result ?? { kind: 'failed', text: 'it was ended, and left processes behind' };
    })
    .finally(() => {
      over.abort();
      signal?.removeEventListener('abort', onAbort);
      // The pipes of a program that could not be ended must not keep this process alive.
      for (const stream of [subprocess.stdin, subprocess.stdout, subprocess.stderr])
        if (forced !== undefined) stream?.destroy();
    });
  return { subprocess, ended, isLate: () => force('late'), kill };
}

function textOf(output: unknown): string {
  return typeof output === 'string' ? output : '';
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It ended just now.
  }
}
