/** Whether an increment's cost follows the dirty set and not the guest: the same writes in guests of growing memory. */

import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';

const DIRTY_MIB = 8;
const FILL_MIB = 128;

export async function* growthRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const sizesGib = context.quick ? [1, 4] : [1, 2, 4, 8, 16];
  const count = context.quick ? 8 : 20;
  const workload = `${DIRTY_MIB} MiB rewritten between checkpoints`;
  let first: { readonly totalMs: number; readonly pauseMs: number } | undefined;
  for (const gib of sizesGib) {
    context.progress(`growth: booting a guest of ${gib} GiB`);
    const guest = await LiveGuest.start({ memoryMib: gib * 1024, fillMib: FILL_MIB });
    try {
      await guest.session.checkpoint();
      const totals: number[] = [];
      const pauses: number[] = [];
      for (let i = 0; i < count; i++) {
        context.progress(`growth: ${gib} GiB, checkpoint ${i + 1} of ${count}`);
        await guest.dirty(DIRTY_MIB);
        const summary = await guest.session.checkpoint();
        totals.push(summary.totalMs);
        pauses.push(summary.pauseMs);
      }
      const here = { totalMs: median(totals), pauseMs: median(pauses) };
      const area = 'growth';
      if (first === undefined) {
        first = here;
        yield alone({
          area,
          name: `increment, total, ${gib} GiB guest`,
          workload,
          unit: 'ms',
          value: here.totalMs,
        });
        yield alone({
          area,
          name: `increment, pause, ${gib} GiB guest`,
          workload,
          unit: 'ms',
          value: here.pauseMs,
        });
        continue;
      }
      const peer = `${sizesGib[0]!} GiB guest`;
      yield againstPeer(
        {
          area,
          name: `increment, total, ${gib} GiB guest`,
          workload,
          unit: 'ms',
          value: here.totalMs,
          peer,
          peerValue: first.totalMs,
        },
        'at most 1.3x',
        (ratio) => ratio <= 1.3,
      );
      yield againstPeer({
        area,
        name: `increment, pause, ${gib} GiB guest`,
        workload,
        unit: 'ms',
        value: here.pauseMs,
        peer,
        peerValue: first.pauseMs,
      });
    } finally {
      await guest.destroy();
    }
  }
}
