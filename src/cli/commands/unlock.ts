import type { Command } from 'commander';

import { command, run, type SharedOptions } from '../command.js';

export function unlockCommand(): Command {
  return command('unlock', 'remove the lock that a writer on another host left behind', [
    'cairn unlock web1 --repo /srv/cairn',
  ])
    .argument('<name>', 'name of the chain')
    .action((name: string, options: SharedOptions) =>
      run(options, async ({ reporter, openRepository }) => {
        const repository = await openRepository();
        const removed = await repository.unlock(name);
        reporter.summary(
          { name, removed },
          removed.length > 0 ? `unlocked ${name}` : `${name} was not locked`,
        );
        return undefined;
      }),
    );
}
