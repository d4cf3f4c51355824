/**
 * One life of the soak: a machine, its loads, COUNT checkpoints with something random done before each, all of them exact or
 * reported. `node dist/test/truth/soak-life.js COUNT SEED TRACKER QEMU`; `test/nested/soak.ts` runs one after the other.
 */

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabMachine } from '../lab/machine.js';
import { scratchDir, type QemuVersion } from '../lab/support/lab-files.js';
import { ExactSession } from './exact-session.js';
import { chooseAccelerator, compactMemory, directDisk, kernelTrackers, swapOut, whyNoSwap } from './host.js';
import { MEMORY_MIB, DIRECT_LOAD, LOAD } from './scenarios.js';
import { printLine } from './truth-line.js';

interface Life {
  readonly machine: LabMachine;
  session: ExactSession;
  readonly open: () => Promise<ExactSession>;
  /** From 0 to below 1. */
  readonly random: () => number;
}

type Deed = (life: Life) => Promise<void> | void;

/** Each as likely as often as it stands here. */
const DEEDS: readonly (readonly [string, number, Deed])[] = [
  ['rest', 50, ({ random }) => sleep(random() * 600)],
  ['nothing', 15, () => undefined],
  [
    'balloon',
    10,
    async ({ machine, random }) => {
      await machine.qmp.command('balloon', { value: (80 + Math.floor(random() * 48)) << 20 });
      await sleep(random() * 800);
    },
  ],
  [
    'burst',
    10,
    async ({ machine }) => {
      await machine.guest('dd if=/dev/urandom of=/tmp/burst bs=1M count=4 2>/dev/null', 180_000);
    },
  ],
  [
    'another attachment',
    8,
    async (life) => {
      await life.session.close();
      life.session = await life.open();
    },
  ],
  ['compaction', 3, compactMemory],
  [
    'swapping out',
    3,
    ({ machine }) => {
      if (whyNoSwap() === '') swapOut(machine);
    },
  ],
  [
    'reset',
    1,
    async ({ machine, random }) => {
      const bytes = machine.diary().length;
      await machine.qmp.command('system_reset');
      // Half of the time the next checkpoint comes in the middle of the boot.
      if (random() < 0.5) await machine.waitForBoot(bytes, 300_000);
      else await sleep(random() * 3000);
    },
  ],
];

const [countText = '100', seedText = '0', tracker = 'auto', qemu = '7.2'] = process.argv.slice(2);
try {
  await live(Number(countText), Number(seedText));
  printLine({ event: 'done' });
} catch (error) {
  printLine({
    event: 'failed',
    message: error instanceof Error ? (error.stack ?? error.message) : String(error),
  });
  process.exitCode = 1;
}
process.exit();

async function live(count: number, seed: number): Promise<void> {
  const accelerator = await chooseAccelerator();
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
  printLine({ event: 'started', kernel, accelerator, trackers: kernelTrackers() });
  const dir = scratchDir('soak');
  // Every other life has a disk whose direct reads are in flight most of the time.
  const disk = seed % 2 === 1 ? directDisk(dir) : undefined;
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
  const open = (): Promise<ExactSession> => ExactSession.open(machine, { tracker, maxPauseMs: 5 });
  let life: Life | undefined;
  try {
    await machine.guest(LOAD);
    await machine.guest(disk === undefined ? 'lab disk' : `(${DIRECT_LOAD}) </dev/null >/dev/null 2>&1 &`);
    life = { machine, session: await open(), open, random: randomFrom(seed) };
    for (let i = 0; i < count; i++) {
      const [step, , deed] = pick(life.random());
      if (i > 0) await deed(life);
      const { summary, differing } = await life.session.checkpoint();
      printLine({
        event: 'checkpoint',
        scenario: `soak ${seed}`,
        tracker: summary.tracker,
        step,
        differing,
        kind: summary.kind,
        compareReason: summary.compareReason,
        dirtyPages: summary.dirtyPages,
        rounds: summary.rounds,
        pauseMs: Math.round(summary.pauseMs - summary.phases.hookMs),
        roundStopsMs: Math.round(summary.phases.roundStopsMs),
      });
    }
    const problems = await life.session.verify();
    if (problems.length > 0) throw new Error(`the repository does not verify: ${JSON.stringify(problems)}`);
  } finally {
    await life?.session.close();
    await machine.destroy();
    undo?.();
  }
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
