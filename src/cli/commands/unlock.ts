import type { Command } from 'commander';

import { command, run, type SharedOptions } from '../command.js';

interface Options extends SharedOptions {
  readonly force?: boolean;
}

export function unlockCommand(): Command {
  return command('unlock', 'remove the locks of writers that are gone', [
    'cairn unlock web1 --repo /srv/cairn',
  ])
    .argument('<name>', 'name of the chain')
    .option(
      '--force',
      'take the lock from a living writer too, or from one that cannot be judged: what it has not committed fails',
    )
    .action((name: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const removed = await repository.unlock(name, {
          force: options.force,
          signal,
          onWait: (text) => reporter.warning(text),
        });
        reporter.summary(
          { name, removed },
          removed.length > 0 ? `unlocked ${name}` : `${name} was not locked`,
        );
        return undefined;
      }),
    );
}
