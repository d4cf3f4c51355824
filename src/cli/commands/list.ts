import type { Command } from 'commander';

import type { Manifest } from '../../format/manifest.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { formatBytes, formatMs, formatTable } from '../../text.js';
import { statNumber } from '../manifest-stats.js';

interface Options extends SharedOptions {
  readonly name?: string;
}

export function listCommand(): Command {
  return command('list', 'list checkpoints, oldest first', [
    'cairn list --repo /srv/cairn',
    'cairn list --name web1 --json',
  ])
    .option('--name <name>', 'only this chain')
    .action((options: Options) =>
      run(options, async ({ reporter, openRepository }) => {
        const repository = await openRepository();
        const { manifests, damaged } = await repository.checkpoints(options.name);
        for (const problem of damaged) reporter.warning(problem.message);
        reporter.summary(
          { checkpoints: manifests.map(listed), damaged: damaged.map((problem) => problem.message) },
          manifests.length === 0
            ? 'no checkpoints'
            : formatTable(
                ['id', 'vm', 'kind', 'time', 'pause', 'dirty', 'stored'],
                manifests.map((manifest) => [
                  manifest.id,
                  manifest.vmName,
                  manifest.kind,
                  manifest.time,
                  formatMs(statNumber(manifest, 'pauseMs')),
                  `${statNumber(manifest, 'dirtyPages')}`,
                  formatBytes(manifest.storedBytes),
                ]),
              ),
        );
        return damaged.length === 0 ? undefined : EXIT.damaged;
      }),
    );
}

function listed(manifest: Manifest): Record<string, unknown> {
  return {
    checkpointId: manifest.id,
    parentId: manifest.parentId,
    name: manifest.vmName,
    kind: manifest.kind,
    time: manifest.time,
    memoryBytes: manifest.layout.sizeBytes,
    pauseMs: statNumber(manifest, 'pauseMs'),
    dirtyPages: statNumber(manifest, 'dirtyPages'),
    storedBytes: manifest.storedBytes,
  };
}
