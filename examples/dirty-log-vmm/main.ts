/**
 * A small VMM whose VM Cairn tracks by KVM's own dirty log: node dist/examples/dirty-log-vmm/main.js
 *
 * It needs a /dev/kvm that runs guests, and prints what was collected in each way that the kernel has: after
 * the first writes, after these were put back and more was written, and after nothing was written.
 */

import { runExample } from './example.js';
import { whyNoKvmLog } from './vmm.js';

const whyNot = whyNoKvmLog();
if (whyNot !== '') {
  process.stderr.write(`this host runs no guest: ${whyNot}\n`);
  process.exitCode = 2;
} else if (!(await runExample((line) => process.stdout.write(`${line}\n`)))) {
  process.exitCode = 1;
}
