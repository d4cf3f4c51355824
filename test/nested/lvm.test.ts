/** Disks on logical volumes, under both kernels: real lvm2 and device-mapper need a kernel of one's own. */

import { describe, expect, it } from '@jest/globals';

import { runNested, type NestedSuite } from './nested-machine.js';

const LIMIT_MS = 1_200_000;

describe('disks on logical volumes', () => {
  it.each<[kernel: string, suite: NestedSuite]>([
    ['6.1.', 'bookworm'],
    ['6.12.', 'bookworm-backports'],
  ])(
    'are put back to the instant of the checkpoint, or refused, under kernel %s',
    async (kernel, suite) => {
      const lines = await runNested({
        suite,
        program: ['dist/test/truth/lvm-main.js'],
        timeoutMs: LIMIT_MS,
        onLine: (line) => process.stderr.write(`  ${JSON.stringify(line)}\n`),
      });
      expect(lines[0]).toMatchObject({ event: 'started', kernel: expect.stringContaining(kernel) });
      expect(lines.at(-1)).toMatchObject({ event: 'done' });
    },
    LIMIT_MS + 60_000,
  );
});
