/**
 * Repositories on NFS, on this machine: needs the kernel's server and client, so it is run in the nested lab.
 *
 *     node dist/test/truth/nfs-main.js [imports-hard4,locks-hard4,...]
 *
 * Ends with status 1 when a step does not hold. One JSON line for each step.
 */

import { readFileSync } from 'node:fs';

import { scratchDir } from '../lab/support/lab-files.js';
import { Imports } from './nfs-imports.js';
import { tryLocks } from './nfs-locks.js';
import { checked, place, type MountKind } from './nfs-place.js';
import { NfsServer } from './nfs-server.js';
import { printLine } from './truth-line.js';

/** Mounts what it needs, and is then to be run. */
type Trial = (server: NfsServer) => (dir: string) => Promise<void>;

const imports =
  (kind: MountKind): Trial =>
  (server) => {
    const where = place(server, 'a', kind, `small-${kind}`);
    return async (dir) => (await Imports.start(server, where, dir)).all(kind !== 'soft4');
  };

const locks =
  (kind: MountKind): Trial =>
  (server) => {
    const a = place(server, 'a', kind, `locks-${kind}`);
    const b = place(server, 'b', kind, `locks-${kind}`);
    return (dir) => tryLocks({ server, a, b, dir });
  };

const TRIALS: Readonly<Record<string, Trial>> = {
  'imports-hard4': imports('hard4'),
  'imports-soft4': imports('soft4'),
  'locks-hard4': locks('hard4'),
};

async function main(): Promise<void> {
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
  printLine({ event: 'started', kernel, accelerator: 'none', trackers: [] });
  const server = await NfsServer.start();
  checked('the server and two hosts are there');
  const [only = Object.keys(TRIALS).join()] = process.argv.slice(2);
  // All of them before the server is restarted.
  const trials = only.split(',').map((name) => TRIALS[name]!(server));
  for (const trial of trials) await trial(scratchDir('nfs'));
  printLine({ event: 'done' });
}

await main().then(
  () => process.exit(0),
  (error: unknown) => {
    printLine({
      event: 'failed',
      message: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
    process.exit(1);
  },
);
