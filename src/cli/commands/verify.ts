import type { Command } from 'commander';

import { verify } from '../../repository/verify/verify.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { formatBytes, printable } from '../../text.js';

interface Options extends SharedOptions {
  readonly name?: string;
}

export function verifyCommand(): Command {
  return command('verify', 'read everything back and check it', ['cairn verify --repo /srv/cairn'])
    .option('--name <name>', 'only this chain')
    .action((options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const result = await verify(repository, {
          ...(options.name === undefined ? {} : { chain: options.name }),
          signal,
          onProgress: (done, total) => reporter.progress({ task: 'verify', done, total, unit: 'bytes' }),
        });
        reporter.summary(
          { ...result, problems: result.problems.map((problem) => problem.message) },
          [
            ...result.problems.map((problem) => `damaged: ${printable(problem.message)}`),
            `${result.checkpoints} checkpoints, ${result.records} records, ${formatBytes(result.bytes)} read, ${result.problems.length} problems`,
          ].join('\n'),
        );
        return result.problems.length === 0 ? undefined : EXIT.damaged;
      }),
    );
}
