/**
 * Opens and closes a userfaultfd inside a process, over and over, until it is killed: a tracer that nearly
 * always has a thread of it in
 * hand. Argument: process id. Prints a line when it begins.
 */

import { findCallCode } from '../../../adapters/kvm/trackers/pagemap-scan/tracer/code.js';
import { injectWith } from '../../../adapters/kvm/trackers/pagemap-scan/tracer/inject.js';
import { countCalls } from '../../../adapters/kvm/trackers/pagemap-scan/tracer/ptrace.js';
import {
  SYS_USERFAULTFD,
  USERFAULTFD_FLAGS,
} from '../../../adapters/kvm/trackers/pagemap-scan/userfaultfd.js';

const SYS_CLOSE = 3;

const pid = Number(process.argv[2]);
const code = await findCallCode(pid);
countCalls();
process.stdout.write('begins\n');
for (;;) {
  const { value } = injectWith(pid, code, { number: SYS_USERFAULTFD, args: [USERFAULTFD_FLAGS] });
  if (value >= 0) injectWith(pid, code, { number: SYS_CLOSE, args: [value] });
}
