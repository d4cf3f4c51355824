/**
 * A pause guard for tests. Argument: path of a log, to which it adds a line when it resumes or thaws the VM. While there is a
 * file of that name with .runs at the end, the VM has not stopped yet.
 */

import { appendFileSync, existsSync } from 'node:fs';

import { runPauseGuard } from '../../adapters/guard/pause-guard-process.js';

runPauseGuard({
  retryMs: 5,
  standsStill: ([log = '']) => Promise.resolve(!existsSync(`${log}.runs`)),
  resumeOnce: async (_, [log = ''], isLeft) => {
    if (await isLeft()) appendFileSync(log, 'resumed\n');
    return true;
  },
  thawOnce: ([log = '']) => {
    appendFileSync(log, 'thawed\n');
    return Promise.resolve(true);
  },
});
