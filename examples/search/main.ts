/**
 * Tries a command on a machine until it exits 0, at most a hundred times, each from the same moment:
 *
 *     node dist/examples/search/main.js qmp:/run/web1.qmp /srv/cairn 100 'ssh web1 "try-it $CAIRN_TRY"'
 *
 * The machine is left as the successful try made it, or at the checkpoint. Ctrl-C ends the search between two
 * steps.
 */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

import { hypervisors, openBackend, Repository } from '../../src/index.js';
import { search } from './search.js';

const LIMIT_MS = 60_000;
const run = promisify(execFile);

const [, , address, folder, tries, command] = process.argv;
if (address === undefined || folder === undefined || command === undefined) {
  process.stderr.write('usage: main.js VM REPOSITORY TRIES COMMAND\n');
  process.exit(2);
}
const interrupted = new AbortController();
process.once('SIGINT', () => interrupted.abort());
const repository = await Repository.open(openBackend(folder));
const { found, checkpointId, pauses } = await search({
  ...{ hypervisors: hypervisors(), address, repository, tries: Number(tries), signal: interrupted.signal },
  attempt: async (number, signal) => {
    const env = { ...process.env, CAIRN_TRY: `${number}`, CAIRN_VM: address };
    try {
      await run('/bin/sh', ['-c', command], { env, signal, timeout: LIMIT_MS });
      return true;
    } catch {
      signal.throwIfAborted();
      return false;
    }
  },
});
const sorted = [...pauses].sort((a, b) => a - b);
const median = sorted[sorted.length >> 1];
process.stdout.write(
  `${found === undefined ? 'not found' : `found by try ${found}`}, from checkpoint ${checkpointId}; ` +
    `${pauses.length} rewinds${median === undefined ? '' : `, half of them in ${median.toFixed(1)} ms or less`}\n`,
);
process.exitCode = found === undefined ? 1 : 0;
await repository.close();
