/** What results are of: this machine, this commit. */

import { execFileSync } from 'node:child_process';
import { cpus, release, totalmem } from 'node:os';

import type { BenchResults } from './results.js';

/** Put behind a commit that the tree differs from. */
export const CHANGED = '+changes';

export function thisMachine(): BenchResults['machine'] {
  const [cpu] = cpus();
  return {
    cpu: cpu?.model ?? 'unknown',
    cores: cpus().length,
    memoryGib: Math.round(totalmem() / 2 ** 30),
    kernel: release().replace(/-.*/, ''),
    node: process.version,
  };
}

/** The commit, and whether what was measured differs from it. */
export function commitOfTree(root: string): string {
  const git = (...args: readonly string[]): string =>
    execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  const changed = git('status', '--porcelain', '--', 'src', 'adapters', 'bench', ':!bench/results');
  return git('rev-parse', '--short', 'HEAD') + (changed === '' ? '' : CHANGED);
}
