/** Repositories on NFS: a real server and client need a kernel of one's own. */

import { describe, expect, it } from '@jest/globals';

import { runNested } from './nested-machine.js';

const LIMIT_MS = 1_800_000;

describe('a repository on NFS', () => {
  it(
    'is what was said of it, when the server goes away or its answer is lost, and is locked for all hosts',
    async () => {
      const lines = await runNested({
        suite: 'bookworm-backports',
        program: ['dist/test/truth/nfs-main.js'],
        timeoutMs: LIMIT_MS,
        onLine: (line) => process.stderr.write(`  ${JSON.stringify(line)}\n`),
      });
      expect(lines[0]).toMatchObject({ event: 'started', kernel: expect.stringContaining('6.12.') });
      expect(lines.at(-1)).toMatchObject({ event: 'done' });
    },
    LIMIT_MS + 60_000,
  );
});
