import type { Command } from 'commander';

import { isCheckpointError } from '../../errors.js';
import { fillingNotes, type FillingNote } from '../../host/filling-note.js';
import { defaultRuntimeDir } from '../../host/runtime-dir.js';
import type { Manifest } from '../../format/manifest.js';
import { checkpointTree } from '../checkpoint-tree.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { formatBytes, formatMs, formatTable, printable } from '../../text.js';
import { statNumber } from '../manifest-stats.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly tree?: boolean;
}

export function listCommand(): Command {
  return command('list', 'list checkpoints, oldest first', [
    'cairn list --repo /srv/cairn',
    'cairn list --name web1 --json',
    'cairn list --tree   # forks below the checkpoint that they came from',
  ])
    .option('--name <name>', 'only this chain')
    .option('--tree', 'show forked VMs below the checkpoint that they came from')
    .action((options: Options) =>
      run(options, async ({ reporter, openRepository }) => {
        const repository = await openRepository();
        const { manifests, damaged } = await repository.checkpoints(options.name);
        for (const problem of damaged) reporter.warning(problem.message);
        const { location } = repository.backend.properties;
        const filling = fillingFrom(location).filter(
          ({ vmName }) => options.name === undefined || vmName === options.name,
        );
        const rows =
          options.tree === true
            ? checkpointTree(manifests)
            : manifests.map((manifest) => ({ manifest, depth: 0 }));
        const table =
          manifests.length === 0
            ? 'no checkpoints'
            : formatTable(
                ['id', 'vm', 'kind', 'time', 'pause', 'dirty', 'stored'],
                rows.map(({ manifest, depth }) => [
                  `${'  '.repeat(depth)}${manifest.id}`,
                  manifest.vmName,
                  manifest.kind,
                  manifest.time,
                  formatMs(statNumber(manifest, 'pauseMs')),
                  `${statNumber(manifest, 'dirtyPages')}`,
                  formatBytes(manifest.storedBytes),
                ]),
              );
        reporter.summary(
          {
            checkpoints: rows.map(({ manifest }) => listed(manifest)),
            damaged: damaged.map((problem) => problem.message),
            filling: filling.map(({ vmAddress, checkpointId, donePages, totalPages }) => ({
              ...{ vmAddress, checkpointId, donePages, totalPages },
            })),
          },
          [table, ...filling.map((note) => printable(fillingLine(note)))].join('\n'),
        );
        return damaged.length === 0 ? undefined : EXIT.damaged;
      }),
    );
}

/** VMs of this host whose memory still comes out of this repository. */
function fillingFrom(location: string): readonly FillingNote[] {
  try {
    return fillingNotes(defaultRuntimeDir()).filter(({ repository }) => repository === location);
  } catch (error) {
    // A user without a runtime folder fills none.
    if (isCheckpointError(error, 'VM_PERMISSION')) return [];
    throw error;
  }
}

function fillingLine({ vmAddress, checkpointId, donePages, totalPages, state }: FillingNote): string {
  const percent = totalPages === 0 ? 100 : Math.floor((100 * donePages) / totalPages);
  const how = state === 'damaged' ? ', and some of it cannot be read' : '';
  return `${vmAddress} is still being filled from ${checkpointId}: ${percent} % are there${how}`;
}

function listed(manifest: Manifest): Record<string, unknown> {
  return {
    checkpointId: manifest.id,
    parentId: manifest.parentId,
    ...(manifest.forkedFrom === undefined ? {} : { forkedFrom: manifest.forkedFrom }),
    name: manifest.vmName,
    kind: manifest.kind,
    time: manifest.time,
    memoryBytes: manifest.layout.sizeBytes,
    pauseMs: statNumber(manifest, 'pauseMs'),
    dirtyPages: statNumber(manifest, 'dirtyPages'),
    storedBytes: manifest.storedBytes,
  };
}
