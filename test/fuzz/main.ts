/**
 * Fuzzes for as long as it is told:
 *
 *     npm run fuzz -- [TARGET...] [--minutes N] [--seed S] [--grow]
 *
 * Minutes are for each target; without a target all are run, one after the other. Inputs that fail are kept in the corpus of
 * their target as `failed-...`, to be given a name that says why. `--grow` keeps one input of each new kind as well.
 */

import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { runTarget } from './campaign.js';
import { CORPUS, targetNames } from './corpus.js';

const DEFAULT_MINUTES = 5;
const SEEDS = 2 ** 31;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { minutes: { type: 'string' }, seed: { type: 'string' }, grow: { type: 'boolean' } },
});
const known = targetNames();
const unknown = positionals.filter((name) => !known.includes(name));
const minutes = Number(values.minutes ?? DEFAULT_MINUTES);
const seed = Number(values.seed ?? Math.floor(Math.random() * SEEDS));
if (unknown.length > 0 || !(minutes > 0) || !Number.isSafeInteger(seed)) {
  process.stderr.write(`usage: npm run fuzz -- [TARGET...] [--minutes N] [--seed S] [--grow]\n`);
  process.stderr.write(`targets: ${known.join(', ')}\n`);
  process.exit(2);
}
let found = 0;
for (const target of positionals.length > 0 ? positionals : known) {
  const keepIn = join(CORPUS, target);
  process.stdout.write(`${target}: seed ${seed}, ${minutes} min\n`);
  const { executions, kinds, problems } = await runTarget({
    target,
    seed,
    count: Number.MAX_SAFE_INTEGER,
    limitMs: minutes * 60_000,
    keepIn,
    ...(values.grow === true ? { growIn: keepIn } : {}),
    onProblem: ({ problem, name, path }) =>
      process.stdout.write(`  ${name}: ${problem}\n    kept in ${path}\n`),
  });
  found += problems.length;
  process.stdout.write(
    `${target}: ${executions} runs, ${kinds} kinds of ends, ${problems.length} problems\n`,
  );
}
process.exitCode = found === 0 ? 0 : 1;
