import type { Command } from 'commander';

import { Repository } from '../../repository/repository.js';
import { isObjectStore, openStorage } from '../../storage/open.js';
import { command, run, type SharedOptions } from '../command.js';
import { mustSuit, probeAddress } from '../store-report.js';

export function initCommand(): Command {
  return command('init', 'create a new repository', [
    'cairn init --repo /srv/cairn',
    'cairn init --repo s3://backups/cairn',
  ]).action((options: SharedOptions) =>
    run(options, async ({ reporter, signal, repositoryAddress }) => {
      const address = repositoryAddress();
      if (isObjectStore(address)) await mustSuit(await probeAddress(address, signal), address);
      const backend = await openStorage(address);
      try {
        const repository = await Repository.init(backend);
        reporter.summary(
          { repositoryId: repository.id, repository: address },
          `created repository ${repository.id} at ${address}`,
        );
        return undefined;
      } finally {
        await backend.close();
      }
    }),
  );
}
