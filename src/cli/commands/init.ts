import type { Command } from 'commander';

import { Repository } from '../../repository/repository.js';
import { openBackend } from '../../storage/open.js';
import { command, run, type SharedOptions } from '../command.js';

export function initCommand(): Command {
  return command('init', 'create a new repository', ['cairn init --repo /srv/cairn']).action(
    (options: SharedOptions) =>
      run(options, async ({ reporter, repositoryAddress }) => {
        const address = repositoryAddress();
        const repository = await Repository.init(openBackend(address));
        reporter.summary(
          { repositoryId: repository.id, repository: address },
          `created repository ${repository.id} at ${address}`,
        );
        return undefined;
      }),
  );
}
