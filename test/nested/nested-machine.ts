/** The outer machine of the nested lab: an emulated AMD with SVM, so that the kernel in it offers KVM on any host. */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  GUEST_COMMAND_LINE,
  SOURCE_ROOT,
  labCache,
  qemuProgram,
  scratchDir,
} from '../lab/support/lab-files.js';
import { parseLines, type TruthLine } from '../truth/truth-line.js';

/** Debian suite that the kernel comes from: 6.1 and 6.12. */
export type NestedSuite = 'bookworm' | 'bookworm-backports';

const MEMORY_MIB = 3072;
const POLL_MS = 250;
/** The emulation loses an outer kernel now and then (seen: a damaged stack while the other processor patches code). */
const ATTEMPTS = 3;
/** Not those that a program can bring about: its end, and memory that runs out. */
const OUTER_PANIC =
  /Kernel panic - not syncing: (?!Attempted to kill init|Out of memory|System is deadlocked)/;
/** An outer kernel that goes astray beyond a panic resets its machine without a word. */
const HAS_LAST_WORDS = /Kernel panic|^ended with \d/m;
/** A read of 64 KiB takes half a second, less the rest before it: long enough to be caught in flight. */
const SLOW_BYTES_PER_SECOND = 128 << 10;

export interface NestedRun {
  readonly suite: NestedSuite;
  /** A program that prints `TruthLine`s, as a path in the source tree, and its arguments. */
  readonly program: readonly string[];
  readonly timeoutMs: number;
  /** Called with each line as it appears. */
  readonly onLine?: (line: TruthLine) => void;
}

/**
 * Runs a program in an outer machine to its end. Throws, with the end of the console, when it does not get there. It begins anew,
 * and says so, when the outer kernel panics or is gone: the program is a process in it, so that is the emulation's failure.
 */
export async function runNested(run: NestedRun): Promise<readonly TruthLine[]> {
  ensureNestedLab();
  for (let attempt = 1; ; attempt++) {
    try {
      return await runOnce(run);
    } catch (error) {
      if (!(error instanceof OuterPanic) || attempt === ATTEMPTS) throw error;
      process.stderr.write(`  the outer machine begins anew after this: ${error.message}\n`);
    }
  }
}

/** The kernel of the outer machine is gone; nothing is known about the program. */
class OuterPanic extends Error {}

async function runOnce(run: NestedRun): Promise<readonly TruthLine[]> {
  const dir = scratchDir('nested');
  const console_ = join(dir, 'console.log');
  const initrd = packInitrd(dir, run.suite);
  const child = startQemu(dir, run, console_, initrd);
  // Also when the test runner gives up on the test.
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  // Nor by the end of a program that is killed itself.
  const end = (): never => process.exit(1);
  process.once('SIGTERM', end).once('SIGINT', end);
  try {
    const until = Date.now() + run.timeoutMs;
    let seen = 0;
    for (;;) {
      const hasEnded = child.exitCode !== null || child.signalCode !== null;
      const text = existsSync(console_) ? readFileSync(console_, 'latin1').replaceAll('\r', '') : '';
      const lines = parseLines(text);
      for (const line of lines.slice(seen)) run.onLine?.(line);
      seen = lines.length;
      const last = lines.at(-1)?.event;
      if (last === 'done' || last === 'failed') return lines;
      if (hasEnded || Date.now() > until) {
        const why = hasEnded ? 'ended early' : 'took too long';
        const log = readFileSync(join(dir, 'qemu.log'), 'latin1');
        const message = `the outer machine ${why}; console ends: ${text.slice(-3000)}\n${log}`;
        const isLost = OUTER_PANIC.test(text) || !HAS_LAST_WORDS.test(text);
        throw hasEnded && isLost ? new OuterPanic(message) : new Error(message);
      }
      await sleep(POLL_MS);
    }
  } finally {
    process.off('exit', kill).off('SIGTERM', end).off('SIGINT', end);
    kill();
    rmSync(dir, { recursive: true, force: true });
  }
}

function ensureNestedLab(): void {
  execFileSync('bash', [join(SOURCE_ROOT, 'test/nested/setup/ensure.sh')], { stdio: 'inherit' });
}

/** The cached base with the present build behind it: the kernel unpacks one archive after the other. */
function packInitrd(dir: string, suite: NestedSuite): string {
  const path = join(dir, 'initrd.cpio');
  execFileSync(
    'bash',
    [
      join(SOURCE_ROOT, 'test/nested/setup/pack.sh'),
      join(labCache(), 'nested', suite, 'base.cpio'),
      SOURCE_ROOT,
      path,
    ],
    { stdio: ['ignore', 'inherit', 'inherit'] },
  );
  return path;
}

function startQemu(
  dir: string,
  { suite, program }: NestedRun,
  consolePath: string,
  initrd: string,
): ChildProcess {
  // Under the emulation of QEMU 7.2 a kernel 6.12 goes astray every third boot, with a damaged register at a random place.
  const emulator = qemuProgram('10.0');
  const log = openSync(join(dir, 'qemu.log'), 'a');
  const slow = join(dir, 'slow.img');
  writeFileSync(slow, randomBytes(16 << 20));
  const swap = join(dir, 'swap.img');
  writeFileSync(swap, '');
  truncateSync(swap, 512 << 20);
  // The kernel command line separates by blanks, its reader by commas.
  const words = program.map((word) => word.replaceAll(',', '+')).join(',');
  try {
    return spawn(
      emulator.path,
      [
        ...emulator.firmwareArgs,
        ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', `${MEMORY_MIB}`],
        ...['-nodefaults', '-display', 'none', '-no-reboot', '-serial', `file:${consolePath}`],
        ...['-drive', `file=${slow},if=virtio,format=raw,throttling.bps-total=${SLOW_BYTES_PER_SECOND}`],
        ...['-drive', `file=${swap},if=virtio,format=raw,cache=unsafe`],
        ...['-kernel', join(labCache(), 'nested', suite, 'vmlinuz'), '-initrd', initrd],
        '-append',
        // ignore_msrs: kvm-amd reads a register that the emulation does not have.
        `${GUEST_COMMAND_LINE} kvm.ignore_msrs=1 run=${words}`,
      ],
      { cwd: dir, stdio: ['ignore', log, log], env: emulator.env },
    );
  } finally {
    closeSync(log);
  }
}
