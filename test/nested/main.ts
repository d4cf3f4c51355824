/**
 * One run of the nested lab by hand, with the arguments of the ground-truth suite:
 *
 *     node dist/test/nested/main.js bookworm|bookworm-backports [SCENARIO,...|all] [TRACKER,...|all] [QEMU]
 */

import { runNested, type NestedSuite } from './nested-machine.js';

const TIMEOUT_MS = 4 * 3_600_000;

const [suite = 'bookworm', scenarios = 'all', trackers = 'all', qemu = '7.2'] = process.argv.slice(2);
const lines = await runNested({
  suite: suite as NestedSuite,
  program: ['dist/test/truth/main.js', scenarios, trackers, qemu],
  timeoutMs: TIMEOUT_MS,
  onLine: (line) => process.stdout.write(`${JSON.stringify(line)}\n`),
});
process.exit(lines.at(-1)?.event === 'done' ? 0 : 1);
