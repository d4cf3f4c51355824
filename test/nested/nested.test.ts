/**
 * The ground-truth suite on real KVM, inside an emulated machine. Short by default, so that every test run has it; all
 * scenarios, trackers and both versions of QEMU with CAIRN_NESTED=full.
 */

import { describe, expect, it } from '@jest/globals';

import { runNested, type NestedSuite } from './nested-machine.js';
import type { TruthLine } from '../truth/truth-line.js';

const IS_FULL = process.env.CAIRN_NESTED === 'full';
const LIMIT_MS = IS_FULL ? 4 * 3_600_000 : 900_000;

interface Expectation {
  readonly suite: NestedSuite;
  readonly qemu: string;
  /** Of the short run, as `test/truth/main.ts` takes them. */
  readonly scenarios: string;
  readonly trackers: string;
  readonly kernel: string;
  /** Trackers that this kernel has. */
  readonly present: readonly string[];
}

const KERNELS: readonly Expectation[] = [
  {
    suite: 'bookworm',
    kernel: '6.1.',
    qemu: '7.2',
    present: ['soft-dirty', 'compare', 'qmp-stream'],
    scenarios: 'brief',
    trackers: 'soft-dirty,pagemap-scan',
  },
  {
    suite: 'bookworm-backports',
    kernel: '6.12.',
    qemu: '10.0',
    present: ['pagemap-scan', 'soft-dirty', 'compare', 'qmp-stream'],
    scenarios: 'kvm-log,brief',
    trackers: 'pagemap-scan,qmp-stream',
  },
];

describe.each(KERNELS)(
  'real KVM under kernel $kernel with QEMU $qemu',
  ({ suite, kernel, qemu, present, scenarios, trackers }) => {
    it(
      'every checkpoint holds exactly the memory that the guest had, or its tracker is refused',
      async () => {
        const lines = await runNested({
          suite,
          program: ['dist/test/truth/main.js', ...(IS_FULL ? ['all', 'all'] : [scenarios, trackers]), qemu],
          timeoutMs: LIMIT_MS,
          onLine: show,
        });
        expect(lines[0]).toMatchObject({ event: 'started', accelerator: 'kvm', trackers: present });
        expect(lines[0]).toMatchObject({ kernel: expect.stringContaining(kernel) });
        expect(lines.at(-1)).toMatchObject({ event: 'done' });
      },
      LIMIT_MS + 60_000,
    );
  },
);

/** The run takes minutes: whoever watches sees how far it is. */
function show(line: TruthLine): void {
  process.stderr.write(`  ${JSON.stringify(line)}\n`);
}
