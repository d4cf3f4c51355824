/**
 * What checkpoints cost the guest: operations per second inside it, without Cairn, with the tracker armed alone, and with a
 * checkpoint every so often. Stretches with and without take turns. Guest and Cairn share this machine's cores.
 */

import { setTimeout as sleep } from 'node:timers/promises';

import { LiveGuest } from '../live-guest.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';

const INTERVALS: readonly { readonly everyMs: number; readonly goalPercent: number }[] = [
  { everyMs: 10_000, goalPercent: 2 },
  { everyMs: 1_000, goalPercent: 5 },
  { everyMs: 200, goalPercent: 15 },
];

export async function* slowDownRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const turns = context.quick ? 2 : 5;
  context.progress('slow-down: booting a guest');
  const guest = await LiveGuest.start({ memoryMib: 512, fillMib: 128 });
  try {
    await guest.machine.guest('lab operations');
    await guest.session.checkpoint();
    for (const { everyMs, goalPercent } of INTERVALS) {
      const stretchMs = Math.max(5_000, everyMs);
      const without: number[] = [];
      const withCheckpoints: number[] = [];
      for (let turn = 0; turn < turns; turn++) {
        context.progress(`slow-down: every ${everyMs / 1000} s, turn ${turn + 1} of ${turns}`);
        without.push(await operationsPerSecond(guest, stretchMs, 0));
        withCheckpoints.push(await operationsPerSecond(guest, stretchMs, everyMs));
      }
      yield againstPeer(
        {
          area: 'slow-down',
          name: `operations per second, a checkpoint every ${everyMs / 1000} s`,
          workload: '512 MiB guest, small writes to memory',
          unit: '1/s',
          value: median(withCheckpoints),
          peer: 'no checkpoints (tracker armed)',
          peerValue: median(without),
        },
        `at most ${goalPercent} % less`,
        (ratio) => ratio >= 1 - goalPercent / 100,
      );
    }
  } finally {
    await guest.destroy();
  }
}

async function operationsPerSecond(guest: LiveGuest, stretchMs: number, everyMs: number): Promise<number> {
  const from = await operations(guest);
  const started = Date.now();
  while (Date.now() - started < stretchMs) {
    const next = Date.now() + everyMs;
    if (everyMs > 0) await guest.session.checkpoint();
    const until = everyMs > 0 ? Math.min(next, started + stretchMs) : started + stretchMs;
    await sleep(Math.max(0, until - Date.now()));
  }
  const elapsed = Date.now() - started;
  return ((await operations(guest)) - from) / (elapsed / 1000);
}

async function operations(guest: LiveGuest): Promise<number> {
  return Number(await guest.machine.guest('cat /tmp/operations'));
}
