/**
 * The ground-truth suite on this machine, or on the nested lab's outer one:
 *
 *     node dist/test/truth/main.js [SCENARIO,...|all] [TRACKER,...|all] [QEMU]
 *
 * Ends with status 1 when a checkpoint is not exact or a tracker is trusted that must not be. One JSON line for each event.
 */

import { readFileSync } from 'node:fs';

import type { QemuVersion } from '../lab/support/lab-files.js';
import { chooseAccelerator, kernelTrackers } from './host.js';
import { runExample } from '../../examples/dirty-log-vmm/example.js';
import { whyNoKvmLog } from '../../examples/dirty-log-vmm/vmm.js';
import { kvmLogFaults } from './kvm-log.js';
import { faultsOf } from './judge.js';
import { runScenario } from './run.js';
import { scenariosNamed } from './scenarios.js';
import { printLine, type TruthLine } from './truth-line.js';

/** KVM's own log, against a guest of ten bytes instead of a Linux. */
const KVM_LOG = 'kvm-log';
const TRACKERS = ['pagemap-scan', 'soft-dirty', 'compare', 'qmp-stream'];

const [scenarios = 'all', trackers = 'all', qemu = '7.2'] = process.argv.slice(2);
const lines: TruthLine[] = [];
const report = (line: TruthLine): void => {
  lines.push(line);
  printLine(line);
};
const faults: string[] = [];
try {
  const accelerator = await chooseAccelerator();
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
  report({ event: 'started', kernel, accelerator, trackers: kernelTrackers() });
  const names = scenarios.split(',');
  if (names.includes('all') || names.includes(KVM_LOG)) {
    const whyNot = whyNoKvmLog();
    if (whyNot !== '') report({ event: 'skipped', scenario: KVM_LOG, reason: whyNot });
    else {
      const found = [...kvmLogFaults()];
      const said: string[] = [];
      if (!(await runExample((line) => said.push(line)))) found.push(`the example: ${said.join('; ')}`);
      report({ event: 'checked', scenario: KVM_LOG, faults: found });
      faults.push(...found);
    }
  }
  for (const scenario of scenariosNamed(names.filter((name) => name !== KVM_LOG))) {
    for (const tracker of trackers === 'all' ? TRACKERS : trackers.split(',')) {
      await runScenario({ scenario, tracker, accelerator, qemu: qemu as QemuVersion, report });
      faults.push(...faultsOf(lines, scenario, tracker));
    }
  }
  report(faults.length === 0 ? { event: 'done' } : { event: 'failed', message: faults.join('\n') });
} catch (error) {
  report({
    event: 'failed',
    message: error instanceof Error ? (error.stack ?? error.message) : String(error),
  });
}
process.exit(lines.at(-1)?.event === 'done' ? 0 : 1);
