import type { Command } from 'commander';

import { CheckpointError } from '../../errors.js';
import { hypervisors } from '../../index.js';
import { receiveCheckpoints } from '../../intake/receive.js';
import { checkpointText } from '../checkpoint-text.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { compressionLevel, wholeNumber, workerCount } from '../parse.js';
import { asCheckpointError } from '../reporter.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly count?: number;
  readonly temp?: string;
  readonly workers?: number;
  readonly compression?: number;
}

/** What xl waits for from whoever takes a migration (tools/xl/xl_migrate.c). */
const BANNER = 'xl migration receiver ready, send binary domain data.\n';

export function receiveCommand(): Command {
  return command('receive', 'take a checkpoint of each state that xl remus sends; started by it', [
    "xl remus -F -n -d -i 5000 -s '' web1 'exec cairn receive --repo /backup'",
    "xl remus -F -n -d -i 60000 -s '' web1 'exec cairn receive --repo /backup --count 10 2>>/var/log/cairn.log'",
  ])
    .option('--name <name>', "chain that it belongs to (default: the guest's name)")
    .option('--count <n>', 'end after that many checkpoints', wholeNumber(1))
    .option('--temp <folder>', "where memory is kept meanwhile, up to twice the guest's (default: $TMPDIR)")
    .option('--workers <n>', 'threads that encode (default: one a core, at most 4)', workerCount)
    .option('--compression <level>', 'zstd level, 0 = off (default: 3)', compressionLevel)
    .addHelpText(
      'after',
      '\nstdin and stdout are those of xl: what there is to say goes to stderr, with --json too.',
    )
    .action((options: Options) =>
      run(
        options,
        async ({ reporter, signal, openRepository }) => {
          if (process.stdin.isTTY) {
            throw new CheckpointError('USAGE', 'there is no stream on stdin', {
              hint: 'cairn receive is started by xl remus, see cairn receive --help',
            });
          }
          const repository = await openRepository();
          process.stdout.write(BANNER);
          const { checkpoints, failed } = await receiveCheckpoints({
            repository,
            hypervisor: hypervisors().receiving(),
            stream: process.stdin,
            name: options.name,
            count: options.count,
            tempDir: options.temp,
            workers: options.workers,
            compressionLevel: options.compression,
            signal,
            onState: (state, pageCount) =>
              reporter.progress({ task: `state ${state}`, done: pageCount, total: pageCount, unit: 'pages' }),
            onCheckpoint: (checkpoint) => {
              for (const warning of checkpoint.warnings) reporter.warning(warning);
              reporter.summary({ ...checkpoint }, checkpointText(checkpoint));
            },
            onFailure: (error) => reporter.error(asCheckpointError(error)),
          });
          reporter.summary({ checkpoints, failed }, `${checkpoints} checkpoints, ${failed} failed`);
          return failed === 0 ? undefined : EXIT.incomplete;
        },
        process.stderr,
      ),
    );
}
