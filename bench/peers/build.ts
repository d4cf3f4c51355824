/**
 * The peers that are C: compiled by the gcc of this machine when the bench starts, into the cache. What Debian package is missing
 * is said, and installed when this is root.
 */

import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';

import { SOURCE_ROOT } from '../../test/lab/support/lab-files.js';
import { workloadCache } from '../trace/workload-guest.js';

const HERE = join(SOURCE_ROOT, 'bench/peers');

/** Compiles `name`.c with these flags. @returns path of the shared library */
export function buildPeer(name: string, flags: readonly string[], libraries: readonly string[] = []): string {
  execFileSync('bash', [join(HERE, 'setup.sh')], { stdio: ['ignore', 'inherit', 'inherit'] });
  const source = join(HERE, `${name}.c`);
  const hash = createHash('sha256').update(readFileSync(source)).update(flags.join(' '));
  // Compiled for this processor: another machine that shares the cache needs its own.
  hash.update(/^flags\s*:.*$/m.exec(readFileSync('/proc/cpuinfo', 'latin1'))?.[0] ?? '');
  const folder = join(workloadCache(), 'peers');
  const path = join(folder, `${name}-${hash.digest('hex').slice(0, 16)}.so`);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const temporary = `${path}~${process.pid}`;
  execFileSync('gcc', [...flags, '-fPIC', '-shared', '-o', temporary, source, ...libraries], {
    stdio: 'inherit',
  });
  renameSync(temporary, path);
  return path;
}
