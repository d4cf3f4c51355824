import type { Command } from 'commander';

import { diffCheckpoints } from '../../repository/diff.js';
import { command, run, type SharedOptions } from '../command.js';
import { formatBytes, formatTable } from '../../text.js';

interface Options extends SharedOptions {
  readonly name?: string;
}

export function diffCommand(): Command {
  return command('diff', 'pages and bytes that differ between two checkpoints', [
    'cairn diff 3f9a latest --repo /srv/cairn',
  ])
    .argument('<from>', 'checkpoint id, the start of one, or latest')
    .argument('<to>', 'the same')
    .option('--name <name>', 'look only in this chain')
    .action((from: string, to: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const [a, b] = [await repository.find(from, options.name), await repository.find(to, options.name)];
        const diff = await diffCheckpoints(repository, a, b, { signal });
        reporter.summary(
          { from: a.id, to: b.id, ...diff },
          [
            `${a.id} -> ${b.id}: ${diff.pages} pages differ in ${formatBytes(diff.changedBytes)}`,
            formatTable(
              ['region', 'pages', 'changed'],
              diff.regions.map((region) => [region.id, `${region.pages}`, formatBytes(region.changedBytes)]),
            ),
          ].join('\n'),
        );
        return undefined;
      }),
    );
}
