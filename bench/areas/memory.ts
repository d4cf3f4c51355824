/** Memory of Cairn itself: highest resident size of a watcher process, against its budget and the guest's size. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { LabMachine } from '../../test/lab/machine.js';
import { CairnProcess, cairn, isSummary } from '../../test/lab/support/cairn-cli.js';
import { alone, type BenchContext, type BenchRow } from '../rows.js';

const ALLOWANCE_MIB = 200;

export async function* memoryRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const count = context.quick ? 6 : 20;
  for (const gib of context.quick ? [1] : [1, 4]) {
    context.progress(`memory: booting a guest of ${gib} GiB`);
    const machine = await LabMachine.start({ name: 'bench', memoryMib: gib * 1024, devices: ['balloon'] });
    try {
      await machine.guest(`lab fill ${gib * 512}`, 900_000);
      await machine.guest('lab memory 64');
      for (const budgetMib of [64, 256]) {
        context.progress(`memory: ${gib} GiB guest, budget ${budgetMib} MiB`);
        const repo = join(machine.dir, `repo-${budgetMib}`);
        const options = { dir: machine.dir };
        await cairn(['init', '--repo', repo], options);
        const watch = new CairnProcess(
          [
            'watch',
            machine.address,
            '--repo',
            repo,
            '--every',
            '1',
            '--cache',
            `${budgetMib}`,
            '--count',
            `${count + 1}`,
          ],
          options,
        );
        await watch.message(isSummary, count - 1);
        const peakMib = peakResidentMib(watch.child.pid!);
        await watch.ended;
        yield alone(
          {
            area: 'memory',
            name: `watcher, highest resident size, budget ${budgetMib} MiB`,
            workload: `${gib} GiB guest, ${gib * 512} MiB filled, base and ${count - 1} increments`,
            unit: 'MiB',
            value: peakMib,
          },
          `at most the budget and ${ALLOWANCE_MIB} MiB`,
          (value) => value <= budgetMib + ALLOWANCE_MIB,
        );
      }
    } finally {
      await machine.discard();
    }
  }
}

/** Source: VmHWM of /proc/PID/status, proc(5). */
function peakResidentMib(pid: number): number {
  const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
  if (kib === undefined) throw new Error(`no VmHWM for process ${pid}`);
  return Number(kib) / 1024;
}
