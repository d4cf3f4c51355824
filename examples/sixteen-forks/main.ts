/**
 * Has sixteen machines go on from one checkpoint, says what each costs its host, and tears them down:
 *
 *     node dist/examples/sixteen-forks/main.js /srv/cairn latest /run/tries [COUNT] [SECONDS]
 */

import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { hypervisors, openBackend, Repository } from '../../src/index.js';
import { onForks } from './forks.js';

const [, , address, checkpoint, folder, count = '16', seconds = '5'] = process.argv;
if (address === undefined || checkpoint === undefined || folder === undefined) {
  process.stderr.write('usage: main.js REPOSITORY CHECKPOINT FOLDER [COUNT] [SECONDS]\n');
  process.exit(2);
}
const interrupted = new AbortController();
process.once('SIGINT', () => interrupted.abort());
const repository = await Repository.open(openBackend(address));
const options = {
  ...{ repository, hypervisors: hypervisors(), manifest: await repository.find(checkpoint) },
  ...{ count: Number(count), prefix: 'fork', folder, signal: interrupted.signal },
};

/** KiB by name, of all of a process. */
async function memoryOf(pid: number): Promise<ReadonlyMap<string, number>> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'latin1');
  return new Map([...text.matchAll(/^(\w+):\s+(\d+) kB$/gm)].map(([, name, kib]) => [name!, Number(kib)]));
}

const { results, times } = await onForks(options, async ({ name, vmAddress, pid }) => {
  await delay(Number(seconds) * 1000);
  const memory = await memoryOf(pid);
  const mib = (key: string): string => `${key} ${((memory.get(key) ?? 0) / 1024).toFixed(1)} MiB`;
  return `${name}  ${vmAddress}  ${['Private_Dirty', 'Anonymous', 'Pss'].map(mib).join('  ')}`;
});
process.stdout.write(`${results.join('\n')}\n`);
for (const [step, ms] of Object.entries(times)) process.stdout.write(`${step} ${ms.toFixed(0)}\n`);
await repository.close();
