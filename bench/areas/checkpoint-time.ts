/** Whole time of an increment, from the request until it is durable, against QEMU's own full save of the same VM. */

import { rmSync, statSync, openSync, fsyncSync, closeSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { migrateToFile } from '../../test/lab/support/ground-truth.js';
import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';

const DIRTY_MIB = 18;
const FULL_SAVES = 3;

interface FullSave {
  readonly ms: number;
  readonly durableMs: number;
  readonly sizeBytes: number;
}

interface Workload {
  readonly name: string;
  /** Started once, before the increments. */
  readonly start?: string;
  /** Before each increment. */
  readonly before: (guest: LiveGuest) => Promise<void>;
}

/** What changes in a VM that has nothing to do, in one at work, and the worst case: as many pages as the pause is promised for, all of them new random data. */
const WORKLOADS: readonly Workload[] = [
  { name: 'idle for 1 s', before: () => sleep(1000) },
  { name: 'small files rewritten for 1 s', start: 'lab operations', before: () => sleep(1000) },
  {
    name: 'scattered small writes and runs of 64 KiB for 1 s',
    start: 'lab memory 32',
    before: () => sleep(1000),
  },
  { name: `${DIRTY_MIB} MiB rewritten with other random data`, before: (guest) => guest.dirty(DIRTY_MIB) },
];

export async function* checkpointTimeRows(context: BenchContext): AsyncGenerator<BenchRow> {
  yield* rowsForSize(context, 1024, 640, 97, context.quick ? 1 : 0.4);
  if (!context.quick) yield* rowsForSize(context, 4096, 3000, 99, 1);
}

async function* rowsForSize(
  context: BenchContext,
  memoryMib: number,
  fillMib: number,
  goalPercent: number,
  /** Of the budget, at the end of this. */
  share: number,
): AsyncGenerator<BenchRow> {
  const area = 'checkpoint-time';
  const size = `${memoryMib / 1024} GiB guest`;
  context.progress(`checkpoint-time: booting a guest of ${memoryMib} MiB`);
  const guest = await LiveGuest.start({ memoryMib, fillMib });
  try {
    const base = await guest.session.checkpoint();
    const saves = [await fullSave(guest)];
    const ratios: number[] = [];
    for (const [w, workload] of WORKLOADS.entries()) {
      const end = share * (0.4 + (0.6 * (w + 1)) / WORKLOADS.length);
      const totals: number[] = [];
      const stored: number[] = [];
      if (workload.start !== undefined) await guest.machine.guest(workload.start);
      const count = context.quick ? 4 : 30;
      for (let i = 0; i < count && !(i >= 5 && context.timeIsUp(end)); i++) {
        context.progress(`checkpoint-time: ${size}, checkpoint ${i + 1} of ${count}`);
        await workload.before(guest);
        const summary = await guest.session.checkpoint();
        totals.push(summary.totalMs);
        stored.push(summary.storedBytes);
        if ((i + 1) % Math.ceil(count / (context.quick ? 1 : FULL_SAVES)) === 0)
          saves.push(await fullSave(guest));
      }
      if (workload.start !== undefined) await guest.machine.guest('lab stop');
      const held = { area, workload: `${size}, ${workload.name}` } as const;
      const total = { ...held, name: 'increment, total, durable', unit: 'ms', value: median(totals) };
      const durableMs = median(saves.map((save) => save.durableMs));
      ratios.push(total.value / durableMs);
      yield againstPeer(
        { ...total, peer: 'QEMU migrate to a file, durable', peerValue: durableMs },
        `at least ${goalPercent} % less`,
        (ratio) => ratio <= 1 - goalPercent / 100,
      );
      yield againstPeer(
        {
          ...total,
          peer: 'QEMU migrate to a file, not synced',
          peerValue: median(saves.map(({ ms }) => ms)),
        },
        `at least ${goalPercent} % less`,
        (ratio) => ratio <= 1 - goalPercent / 100,
      );
      yield againstPeer({
        ...held,
        name: 'increment, stored',
        unit: 'bytes',
        value: median(stored),
        peer: 'QEMU migrate to a file',
        peerValue: median(saves.map(({ sizeBytes }) => sizeBytes)),
      });
    }
    yield alone(
      {
        area,
        name: 'increment, less time than QEMU migrate to a file, both durable',
        workload: `${size}, median of ${ratios.length} workloads`,
        unit: '%',
        value: (1 - median(ratios)) * 100,
      },
      `at least ${goalPercent} %`,
      (value) => value >= goalPercent,
    );
    yield againstPeer({
      area,
      name: 'base, total, durable (the VM runs)',
      workload: size,
      unit: 'ms',
      value: base.totalMs,
      peer: 'QEMU migrate to a file, durable (the VM stands still)',
      peerValue: median(saves.map(({ durableMs }) => durableMs)),
    });
    yield alone({ area, name: 'base, stored', workload: size, unit: 'bytes', value: base.storedBytes });
  } finally {
    await guest.destroy();
  }
}

/** A complete save by QEMU itself. The VM stands still meanwhile, as it does for `virsh save`. */
async function fullSave({ machine }: LiveGuest): Promise<FullSave> {
  const path = join(machine.dir, 'full-save');
  await machine.qmp.command('stop');
  const started = performance.now();
  await migrateToFile(machine, path);
  const ms = performance.now() - started;
  const file = openSync(path, 'r+');
  fsyncSync(file);
  closeSync(file);
  const durableMs = performance.now() - started;
  const { size } = statSync(path);
  rmSync(path);
  await machine.qmp.command('cont');
  return { ms, durableMs, sizeBytes: size };
}
