/**
 * How long the VM stands still. Checkpoints and floors take turns, so that both see the same noise.
 */

import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, quantile, type BenchContext, type BenchRow } from '../rows.js';

/** Dirty set of the promise in the README: up to 20 MiB at 1 GiB. The guest's own work comes on top of what is written. */
const DIRTY_MIB = 18;
const BASES = 3;

export async function* pauseRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const workload = `1 GiB guest, ${DIRTY_MIB} MiB rewritten between checkpoints`;
  context.progress('pause: booting a guest of 1 GiB');
  const guest = await LiveGuest.start({ memoryMib: 1024, fillMib: context.quick ? 256 : 640 });
  try {
    await guest.machine.guest('lab memory 16');
    const basePauses: number[] = [];
    for (let i = 0; i < BASES; i++) {
      basePauses.push((await guest.session.checkpoint({ forceBase: true })).pauseMs);
    }
    await guest.machine.guest('lab stop');
    yield alone(
      {
        area: 'pause',
        name: `base, longest of ${BASES}`,
        workload: '1 GiB guest under memory load',
        unit: 'ms',
        value: Math.max(...basePauses),
      },
      'at most 100 ms',
      (value) => value <= 100,
    );

    const from = Buffer.alloc(64 << 20, 1);
    const to = Buffer.alloc(64 << 20, 2);
    const pauses: number[] = [];
    const floors: number[] = [];
    const phases = new Map<string, number[]>();
    const count = context.quick ? 20 : 500;
    for (let i = 0; i < count && !(context.quick && i >= 8 && context.timeIsUp()); i++) {
      context.progress(`pause: checkpoint ${i + 1} of ${count}`);
      await guest.dirty(DIRTY_MIB);
      const summary = await guest.session.checkpoint();
      pauses.push(summary.pauseMs);
      floors.push(await guest.floorMs(summary.dirtyPages, from, to));
      for (const [phase, ms] of Object.entries(summary.phases) as [string, number][]) {
        phases.set(phase, [...(phases.get(phase) ?? []), ms]);
      }
    }
    yield alone(
      { area: 'pause', name: 'increment, p50', workload, unit: 'ms', value: median(pauses) },
      'at most 10 ms',
      (value) => value <= 10,
    );
    yield againstPeer(
      {
        area: 'pause',
        name: 'increment, p50',
        workload,
        unit: 'ms',
        value: median(pauses),
        peer: 'floor: stop, device state, cont, one copy',
        peerValue: median(floors),
      },
      'at most 2x the floor',
      (ratio) => ratio <= 2,
    );
    yield againstPeer(
      {
        area: 'pause',
        name: 'increment, p99',
        workload,
        unit: 'ms',
        value: quantile(pauses, 0.99),
        peer: 'floor, p50',
        peerValue: median(floors),
      },
      'at most 4x the floor',
      (ratio) => ratio <= 4,
    );
    yield alone({
      area: 'pause',
      name: 'increment, longest',
      workload,
      unit: 'ms',
      value: Math.max(...pauses),
    });
    yield alone({
      area: 'pause',
      name: 'increments measured',
      workload,
      unit: 'checkpoints',
      value: pauses.length,
    });
    for (const [phase, values] of phases) {
      const name = `increment, phase ${phase.replace(/Ms$/, '')}, p50`;
      yield alone({ area: 'pause', name, workload, unit: 'ms', value: median(values) });
    }
  } finally {
    await guest.destroy();
  }
}
