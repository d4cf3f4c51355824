/**
 * The tracker qmp-stream against pagemap-scan: two guests of the same kind, the same dirty sets, turn by turn. And its total time
 * against what bounds it: QEMU's own live migration of the same guest to a reader that throws everything away.
 */

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import type { LabMachine } from '../../test/lab/machine.js';
import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';

const MEMORY_MIB = 1024;
const FILL_MIB = 640;
const MIGRATIONS = 3;

interface Workload {
  readonly name: string;
  /** Started once, before the checkpoints. */
  readonly start?: string;
  readonly before: (guest: LiveGuest) => Promise<unknown>;
}

const WORKLOADS: readonly Workload[] = [
  { name: '1 MiB rewritten', before: (guest) => guest.dirty(1) },
  { name: '18 MiB rewritten', before: (guest) => guest.dirty(18) },
  {
    name: 'scattered small writes and runs of 64 KiB all the time',
    start: 'lab memory 16',
    before: () => sleep(500),
  },
];

interface Taken {
  readonly pauses: number[];
  readonly totals: number[];
  readonly pausePages: number[];
}

export async function* pauseStreamRows(context: BenchContext): AsyncGenerator<BenchRow> {
  context.progress('pause-stream: booting two guests of 1 GiB');
  const guests = new Map<string, LiveGuest>();
  try {
    for (const tracker of ['pagemap-scan', 'qmp-stream']) {
      // Earlier ones stop an emulated VM before the stream.
      const options = {
        memoryMib: MEMORY_MIB,
        fillMib: FILL_MIB,
        qemu: '10.0',
        session: { tracker },
      } as const;
      guests.set(tracker, await LiveGuest.start(options));
      await guests.get(tracker)!.session.checkpoint();
    }
    for (const workload of context.quick ? WORKLOADS.slice(0, 1) : WORKLOADS)
      yield* workloadRows(context, guests, workload);
  } finally {
    for (const guest of guests.values()) await guest.destroy();
  }
}

async function* workloadRows(
  context: BenchContext,
  guests: ReadonlyMap<string, LiveGuest>,
  { name, start, before }: Workload,
): AsyncGenerator<BenchRow> {
  const taken = new Map<string, Taken>();
  const count = context.quick ? 3 : 40;
  if (start !== undefined) for (const { machine } of guests.values()) await machine.guest(start);
  const migrations: number[] = [];
  for (let i = 0; i <= count; i++) {
    context.progress(`pause-stream: ${name}, checkpoint ${i + 1} of ${count + 1}`);
    for (const [tracker, guest] of guests) {
      await before(guest);
      const { pauseMs, totalMs, pausePages } = await guest.session.checkpoint();
      // The first one meets what was just started.
      if (i === 0) continue;
      const known = taken.get(tracker) ?? { pauses: [], totals: [], pausePages: [] };
      taken.set(tracker, known);
      known.pauses.push(pauseMs);
      known.totals.push(totalMs);
      known.pausePages.push(pausePages);
    }
    if (i % Math.ceil(count / MIGRATIONS) === 0)
      migrations.push(await migrateToNowhere(guests.get('pagemap-scan')!.machine));
  }
  if (start !== undefined) for (const { machine } of guests.values()) await machine.guest('lab stop');
  const scan = taken.get('pagemap-scan')!;
  const stream = taken.get('qmp-stream')!;
  const held = {
    area: 'pause',
    workload: `1 GiB guest, QEMU 10.0, ${FILL_MIB} MiB of random data, ${name}`,
  } as const;
  yield againstPeer(
    {
      ...held,
      name: 'increment by qmp-stream, p50',
      unit: 'ms',
      value: median(stream.pauses),
      peer: 'increment by pagemap-scan, p50',
      peerValue: median(scan.pauses),
    },
    'at most 2x',
    (ratio) => ratio <= 2,
  );
  yield alone({
    ...held,
    name: 'increment by qmp-stream, pages of the last round, p50',
    unit: 'pages',
    value: median(stream.pausePages),
  });
  yield againstPeer({
    ...held,
    name: 'increment by qmp-stream, total (the VM runs)',
    unit: 'ms',
    value: median(stream.totals),
    peer: 'QEMU live migration to a reader that drops it',
    peerValue: median(migrations),
  });
}

/** @returns milliseconds until QEMU has sent everything; the VM runs again */
async function migrateToNowhere({ qmp }: LabMachine): Promise<number> {
  await qmp.command('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 });
  const started = performance.now();
  await qmp.command('migrate', { uri: 'exec:cat >/dev/null' });
  for (;;) {
    const { status } = (await qmp.command('query-migrate')) as { status?: string };
    if (status === 'completed') break;
    if (status === 'failed' || status === 'cancelled') throw new Error(`migrate to nowhere: ${status}`);
    await sleep(2);
  }
  const tookMs = performance.now() - started;
  await qmp.command('cont');
  return tookMs;
}
