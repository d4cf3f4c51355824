import type { Command } from 'commander';

import { diskEntry } from '../../format/disk-entry.js';
import type { JsonObject } from '../../types.js';
import { command, run, type SharedOptions } from '../command.js';
import { formatBytes, formatMs, formatTable, printable } from '../../text.js';
import { statNumber } from '../manifest-stats.js';

interface Options extends SharedOptions {
  readonly name?: string;
}

export function showCommand(): Command {
  return command('show', 'show one checkpoint', [
    'cairn show latest --repo /srv/cairn',
    'cairn show 3f9a --json',
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest')
    .option('--name <name>', 'look only in this chain')
    .action((checkpoint: string, options: Options) =>
      run(options, async ({ reporter, openRepository }) => {
        const repository = await openRepository();
        const manifest = await repository.find(checkpoint, options.name);
        const { identity, layout } = manifest;
        reporter.summary(
          { checkpointId: manifest.id, ...manifest, disks: manifest.disks.map(diskEntry) },
          [
            `checkpoint ${manifest.id} (${manifest.kind}), parent ${printable(manifest.parentId ?? 'none')}`,
            `  vm          ${printable(manifest.vmName)}, uuid ${printable(identity.uuid) || 'none'}, ${printable(identity.hypervisor)}, ${printable(identity.machineType)}`,
            ...(manifest.forkedFrom === undefined
              ? []
              : [
                  `  forked from ${printable(`${manifest.forkedFrom.checkpointId} of ${manifest.forkedFrom.chain}`)}`,
                ]),
            `  time        ${printable(manifest.time)}`,
            `  pause       ${formatMs(statNumber(manifest, 'pauseMs'))}, total ${formatMs(statNumber(manifest, 'totalMs'))}`,
            `  dirty       ${statNumber(manifest, 'dirtyPages')} pages, ${formatBytes(statNumber(manifest, 'changedBytes'))} changed`,
            `  device      ${formatBytes(manifest.deviceState?.sizeBytes ?? 0)}`,
            ...(manifest.frozen === undefined
              ? []
              : [`  frozen      ${manifest.frozen.fileSystemCount} file systems`]),
            ...manifest.disks.map(
              ({ diskId, driver, path, data }) =>
                `  disk        ${printable(`${diskId} ${driver} ${path} ${textsIn(data)}`)}`,
            ),
            '',
            formatTable(
              ['region', 'size'],
              layout.regions.map((region) => [region.id, formatBytes(region.sizeBytes)]),
            ),
          ].join('\n'),
        );
        return undefined;
      }),
    );
}

/** What the driver wrote down, as far as it is short: the name of the snapshot, or a path. */
function textsIn(data: JsonObject): string {
  return Object.values(data)
    .flatMap((value) => (typeof value === 'string' && value !== '' ? [value] : []))
    .join(' ');
}
