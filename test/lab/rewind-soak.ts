/**
 * Very many rewinds of one QEMU process:
 *
 *     node dist/test/lab/rewind-soak.js [--count 1000] [--qemu 7.2|10.0] [--seed N]
 *
 * With emulation, unless KVM runs a Linux guest here. A JSON line for each fifty rounds, in the form of the ground-truth
 * suite. Ends with status 1 when a byte of memory differed, or the guest did not go on as it had to.
 */

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { chooseAccelerator, kernelTrackers } from '../truth/host.js';
import { printLine } from '../truth/truth-line.js';
import { LabMachine } from './machine.js';
import type { QemuVersion } from './support/lab-files.js';
import { rewindRounds } from './support/rewind-rounds.js';

const SAY_EVERY = 50;

const { values } = parseArgs({
  options: {
    count: { type: 'string', default: '1000' },
    qemu: { type: 'string', default: '7.2' },
    seed: { type: 'string', default: '1' },
  },
});
const accelerator = await chooseAccelerator();
const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
printLine({ event: 'started', kernel, accelerator, trackers: kernelTrackers() });
const machine = await LabMachine.start({
  name: 'rewind-soak',
  memoryMib: 128,
  qemu: values.qemu as QemuVersion,
  accelerator,
  devices: ['disk', 'net', 'balloon', 'vga'],
});
let faults: readonly string[] = [];
const pauses: number[] = [];
try {
  faults = await rewindRounds(machine, {
    rounds: Number(values.count),
    checkpoints: 4,
    seed: Number(values.seed),
    guestEvery: 10,
    onRound: (round, pauseMs) => {
      pauses.push(pauseMs);
      if ((round + 1) % SAY_EVERY !== 0) return;
      const middle = [...pauses].sort((a, b) => a - b)[pauses.length >>> 1]!;
      printLine({
        event: 'checked',
        scenario: `${round + 1} rewinds, every byte compared; half of the pauses below ${middle.toFixed(1)} ms`,
        faults: [],
      });
    },
  });
} catch (error) {
  faults = [error instanceof Error ? (error.stack ?? error.message) : String(error)];
} finally {
  await machine.destroy();
}
printLine(faults.length === 0 ? { event: 'done' } : { event: 'failed', message: faults.join('\n') });
process.exit(faults.length === 0 ? 0 : 1);
