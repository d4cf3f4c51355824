/**
 * Very many kills of tracers, on a guest under load with two processors:
 *
 *     node dist/test/lab/tracer-kills.js [--count 1000] [--qemu 7.2|10.0]
 *
 * On KVM where it runs a Linux guest, else with emulation. One JSON line for each round, in the form of the
 * ground-truth
 * suite, so that the nested lab can run it too. Ends with status 1 at the first guest that does not go on as
 * before.
 */

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { chooseAccelerator, kernelTrackers } from '../truth/host.js';
import { printLine } from '../truth/truth-line.js';
import { LabMachine } from './machine.js';
import { killTracers } from './support/kill-tracers.js';
import type { QemuVersion } from './support/lab-files.js';

const { values } = parseArgs({
  options: { count: { type: 'string', default: '1000' }, qemu: { type: 'string', default: '7.2' } },
});
const accelerator = await chooseAccelerator();
const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
printLine({ event: 'started', kernel, accelerator, trackers: kernelTrackers() });
const machine = await LabMachine.start({
  name: 'tracer-kills',
  qemu: values.qemu as QemuVersion,
  accelerator,
  smp: 2,
  devices: ['disk', 'balloon'],
});
let faults: readonly string[] = [];
try {
  const { faults: found } = await killTracers(machine, {
    count: Number(values.count),
    onRound: ({ kills, whileTracing, left }) =>
      printLine({
        event: 'checked',
        scenario: `${kills} tracers killed, ${whileTracing} of them with a thread in hand, ${left} userfaultfds left and closed`,
        faults: [],
      }),
  });
  faults = found;
} catch (error) {
  faults = [error instanceof Error ? (error.stack ?? error.message) : String(error)];
} finally {
  await machine.destroy();
}
printLine(faults.length === 0 ? { event: 'done' } : { event: 'failed', message: faults.join('\n') });
process.exit(faults.length === 0 ? 0 : 1);
