/** Whether the pause follows the dirty bytes and not the guest's size: the same dirty sets in guests of growing memory. */

import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, quantile, type BenchContext, type BenchRow } from '../rows.js';

interface DirtySet {
  readonly mib: number;
  readonly checkpoints: number;
}

const FULL: readonly DirtySet[] = [
  { mib: 1, checkpoints: 40 },
  { mib: 16, checkpoints: 40 },
  { mib: 128, checkpoints: 12 },
  { mib: 1024, checkpoints: 5 },
];
const QUICK: readonly DirtySet[] = [
  { mib: 1, checkpoints: 8 },
  { mib: 64, checkpoints: 4 },
];

export async function* pauseSizeRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const sets = context.quick ? QUICK : FULL;
  const from = Buffer.alloc(64 << 20, 1);
  const to = Buffer.alloc(64 << 20, 2);
  /** By dirty set: the median pause in the smallest guest. */
  const smallest = new Map<number, { readonly gib: number; readonly pauseMs: number }>();
  const sizes = context.quick ? [1, 2] : [1, 4, 8];
  for (const [size, gib] of sizes.entries()) {
    context.progress(`pause: booting a guest of ${gib} GiB`);
    const most = Math.max(...sets.map(({ mib }) => mib).filter((mib) => fits(mib, gib)));
    const fillMib = context.quick ? 96 : Math.max(most, gib * 384);
    const guest = await LiveGuest.start({ memoryMib: gib * 1024, fillMib });
    try {
      await guest.session.checkpoint();
      const fitting = sets.filter((set) => fits(set.mib, gib));
      for (const [set, { mib, checkpoints }] of fitting.entries()) {
        const share = (size + (set + 1) / fitting.length) / sizes.length;
        const pauses: number[] = [];
        const floors: number[] = [];
        await guest.machine.guest('rm -f /tmp/target');
        for (let i = 0; i < checkpoints && !(i >= 4 && context.timeIsUp(share)); i++) {
          context.progress(`pause: ${gib} GiB, ${mib} MiB dirty, checkpoint ${i + 1} of ${checkpoints}`);
          await guest.dirty(mib);
          const summary = await guest.session.checkpoint();
          // The first one meets a target file that was just created.
          if (i === 0 && checkpoints > 4) continue;
          pauses.push(summary.pauseMs);
          floors.push(await guest.floorMs(Math.min(summary.pausePages, 16 << 10), from, to));
        }
        const p50 = median(pauses);
        const row = {
          area: 'pause',
          workload: `${gib} GiB guest, ${mib} MiB rewritten`,
          unit: 'ms',
        } as const;
        yield againstPeer(
          {
            ...row,
            name: 'increment, p50',
            value: p50,
            peer: 'floor: stop, device state, cont, one copy',
            peerValue: median(floors),
          },
          'at most 2x the floor',
          (ratio) => ratio <= 2,
        );
        yield alone({ ...row, name: 'increment, p99', value: quantile(pauses, 0.99) });
        yield alone({ ...row, name: 'increment, longest', value: Math.max(...pauses) });
        const first = smallest.get(mib);
        if (first === undefined) {
          smallest.set(mib, { gib, pauseMs: p50 });
          continue;
        }
        yield againstPeer({
          ...row,
          name: 'increment, p50, by guest size',
          value: p50,
          peer: `${first.gib} GiB guest`,
          peerValue: first.pauseMs,
        });
      }
    } finally {
      await guest.destroy();
    }
  }
}

/** The file that is rewritten and the one it is rewritten from lie in the guest's memory. */
function fits(mib: number, gib: number): boolean {
  return mib * 2.5 <= gib * 1024;
}
