/**
 * One life of the soak: a machine, its loads, COUNT checkpoints with something random done before each, all of them exact or
 * reported. `node dist/test/truth/soak-life.js COUNT SEED TRACKER QEMU`; `test/nested/soak.ts` runs one after the other.
 */

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabMachine } from '../lab/machine.js';
import { scratchDir, type QemuVersion } from '../lab/support/lab-files.js';
import { ExactSession } from './exact-session.js';
import { chooseAccelerator, compactMemory, directDisk, kernelTrackers, swapOut, whyNoSwap } from './host.js';
import { DIRECT_LOAD, DISK_LOAD, LOAD } from './scenarios.js';
import { printLine } from './truth-line.js';

interface Life {
  readonly machine: LabMachine;
  session: ExactSession;
  readonly open: () => Promise<ExactSession>;
  /** From 0 to below 1. */
  readonly random: () => number;
  readonly startLoads: () => Promise<void>;
  /** While the guest boots, or has booted and does nothing yet: length of its diary at the reset. */
  bootsFrom?: number | undefined;
  wantsBase: boolean;
}

type Deed = (life: Life) => Promise<void> | void;

/** Little, since all of it is read and compared for each checkpoint. */
const MEMORY_MIB = 104;
/** Less, and the guest kills its loads for want of memory. */
const LEAST_MIB = 88;
const SHARED_MEMORY = '/dev/shm';

/** Each as likely as often as it stands here. A soak is about many checkpoints of many states: most rests are short. */
const ALL_DEEDS: readonly (readonly [string, number, Deed])[] = [
  ['short rest', 50, ({ random }) => sleep(random() * 100)],
  [
    'long rest',
    4,
    async (life) => {
      await untilAtWork(life);
      await sleep(300 + life.random() * 1000);
    },
  ],
  ['nothing', 15, () => undefined],
  [
    'balloon',
    10,
    async ({ machine, random }) => {
      const mib = LEAST_MIB + Math.floor(random() * (MEMORY_MIB - LEAST_MIB));
      await machine.qmp.command('balloon', { value: mib << 20 });
      // Often it is still at work when the next checkpoint comes.
      await sleep(random() * 300);
    },
  ],
  [
    'burst',
    10,
    async (life) => {
      const { machine, random } = life;
      await untilAtWork(life);
      const count = 1 + Math.floor(random() * 32);
      await machine.guest(`dd if=/dev/urandom of=/tmp/burst bs=64k count=${count} 2>/dev/null`, 60_000);
    },
  ],
  [
    'another attachment',
    3,
    async (life) => {
      await life.session.close();
      life.session = await life.open();
    },
  ],
  [
    'new base',
    2,
    (life) => {
      life.wantsBase = true;
    },
  ],
  ['compaction', 1, compactMemory],
  ['swapping out', 3, ({ machine }) => void swapOut(machine)],
  [
    'reset',
    0.5,
    async (life) => {
      life.bootsFrom = life.machine.diary().length;
      await life.machine.qmp.command('system_reset');
      // Half of the time the next checkpoints come in the middle of the boot.
      if (life.random() < 0.5) await untilAtWork(life);
      else await sleep(life.random() * 2000);
    },
  ],
];
const DEEDS = ALL_DEEDS.filter(([name]) => name !== 'swapping out' || whyNoSwap() === '');

// It is stopped like that; what it started and wrote goes with it.
process.once('SIGTERM', () => process.exit(143));
const [countText = '100', seedText = '0', tracker = 'auto', qemu = '7.2'] = process.argv.slice(2);
try {
  await live(Number(countText), Number(seedText));
  printLine({ event: 'done' });
} catch (error) {
  printLine({
    event: 'failed',
    message: inspect(error),
  });
  process.exitCode = 1;
}
process.exit();

async function live(count: number, seed: number): Promise<void> {
  const accelerator = await chooseAccelerator();
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
  printLine({ event: 'started', kernel, accelerator, trackers: kernelTrackers() });
  const dir = scratchDir('soak');
  // The repository in memory: what a disk does with it is not what is asked here.
  const fast = existsSync(SHARED_MEMORY) ? mkdtempSync(join(SHARED_MEMORY, 'cairn-lab-soak-')) : dir;
  process.once('exit', () => [dir, fast].forEach((path) => rmSync(path, { recursive: true, force: true })));
  // Every fourth life has a disk whose direct reads are in flight most of the time: its pauses wait for them.
  const disk = seed % 4 === 1 ? directDisk(dir) : undefined;
  const machine = await LabMachine.start({
    name: 'soak',
    dir,
    qemu: qemu as QemuVersion,
    accelerator,
    memoryMib: MEMORY_MIB,
    devices: disk === undefined ? ['disk', 'net', 'balloon'] : ['net', 'balloon'],
    extraArgs: disk?.args ?? [],
  });
  const undo = disk?.slowDown(machine);
  const open = (): Promise<ExactSession> =>
    ExactSession.open(machine, { tracker, maxPauseMs: 5, repository: join(fast, 'repo') });
  let life: Life | undefined;
  try {
    const startLoads = async (): Promise<void> => {
      await machine.guest(LOAD);
      await machine.guest(`(${disk === undefined ? DISK_LOAD : DIRECT_LOAD}) </dev/null >/dev/null 2>&1 &`);
    };
    await startLoads();
    const session = await open();
    life = { machine, session, open, random: randomFrom(seed), startLoads, wantsBase: false };
    let step = 'start';
    for (let i = 0; i < count; i++) {
      const { summary, pauseMs, differing } = await life.session.checkpoint(life.wantsBase);
      life.wantsBase = false;
      // What the next one has to face is done while this one is compared.
      const [nextStep, , deed] = pick(life.random());
      const done = i === count - 1 ? undefined : Promise.resolve(deed(life));
      // Met when it is waited for.
      done?.catch(() => undefined);
      printLine({
        event: 'checkpoint',
        scenario: `soak ${seed}`,
        tracker: summary.tracker,
        step,
        differing: await differing,
        kind: summary.kind,
        compareReason: summary.compareReason,
        dirtyPages: summary.dirtyPages,
        rounds: summary.rounds,
        pauseMs: Math.round(pauseMs),
        roundStopsMs: Math.round(summary.phases.roundStopsMs),
      });
      await done;
      step = nextStep;
    }
    const problems = await life.session.verify();
    if (problems.length > 0) throw new Error(`the repository does not verify: ${JSON.stringify(problems)}`);
  } catch (error) {
    throw new Error(`the guest's diary ends: ${machine.diary().slice(-1500)}`, { cause: error });
  } finally {
    await life?.session.close();
    await machine.discard();
    // The kernel takes a moment to let go of it.
    await sleep(200);
    undo?.();
  }
}

async function untilAtWork(life: Life): Promise<void> {
  if (life.bootsFrom === undefined) return;
  await life.machine.waitForBoot(life.bootsFrom, 300_000);
  life.bootsFrom = undefined;
  await life.startLoads();
}

function pick(chance: number): (typeof DEEDS)[number] {
  let left = chance * DEEDS.reduce((sum, [, weight]) => sum + weight, 0);
  return DEEDS.find(([, weight]) => (left -= weight) < 0) ?? DEEDS[0]!;
}

/** Mulberry32: the same seed does the same things, though a guest never does. */
function randomFrom(seed: number): () => number {
  let state = (seed + 1) * 0x9e3779b9;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
