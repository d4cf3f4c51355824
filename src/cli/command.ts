/** What every command shares: --repo, --json, signals, errors to exit codes. */

import { Command } from 'commander';

import { CheckpointError } from '../errors.js';
import { keepOutOfCoreDumps } from '../ffi/core-dumps.js';
import { Repository } from '../repository/repository.js';
import { openBackend } from '../storage/open.js';
import { EXIT, exitCodeOf } from './exit-codes.js';
import { JsonReporter, TextReporter, asCheckpointError, type Reporter } from './reporter.js';

export interface SharedOptions {
  readonly repo?: string;
  readonly json?: boolean;
}

export interface CommandContext {
  readonly reporter: Reporter;
  /** Aborted by SIGINT, SIGTERM or a closed output with INTERRUPTED. */
  readonly signal: AbortSignal;
  /** @throws USAGE without --repo and CAIRN_REPOSITORY */
  readonly repositoryAddress: () => string;
  /** @throws REPO_NOT_FOUND, REPO_VERSION, REPO_DAMAGED */
  readonly openRepository: () => Promise<Repository>;
}

/** A command with the shared options and an example at the end of its help. */
export function command(name: string, description: string, examples: readonly string[]): Command {
  return new Command(name)
    .description(description)
    .option('--repo <address>', 'repository: a path or file:PATH (default: $CAIRN_REPOSITORY)')
    .option('--json', 'print one JSON object a line on stdout and nothing else')
    .addHelpText('after', `\nExamples:\n${examples.map((example) => `  $ ${example}`).join('\n')}`)
    .exitOverride();
}

/**
 * Runs the body of a command and sets the exit code. The body returns one when it is not 0.
 * @param results where they are printed
 */
export async function run(
  shared: SharedOptions,
  body: (context: CommandContext) => Promise<number | undefined>,
  results: NodeJS.WritableStream = process.stdout,
): Promise<void> {
  keepOutOfCoreDumps();
  const reporter = shared.json === true ? new JsonReporter(results) : new TextReporter(results);
  const abort = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    abort.abort(new CheckpointError('INTERRUPTED', `interrupted by ${signal}`));
  };
  // A reader such as `head` that has seen enough: end as after a signal, not in the middle of something.
  const onClosedPipe = (): void => {
    abort.abort(new CheckpointError('INTERRUPTED', 'nobody reads the output any more'));
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  process.stdout.on('error', onClosedPipe);
  process.stderr.on('error', onClosedPipe);
  let repository: Repository | undefined;
  const repositoryAddress = (): string => {
    const address = shared.repo ?? process.env.CAIRN_REPOSITORY ?? '';
    if (address !== '') return address;
    throw new CheckpointError('USAGE', 'no repository was named', {
      hint: 'use --repo PATH or set CAIRN_REPOSITORY',
    });
  };
  try {
    process.exitCode =
      (await body({
        reporter,
        signal: abort.signal,
        repositoryAddress,
        openRepository: async () => {
          repository = await Repository.open(openBackend(repositoryAddress()));
          return repository;
        },
      })) ?? EXIT.ok;
  } catch (error) {
    const known = asCheckpointError(error);
    reporter.error(known);
    process.exitCode = exitCodeOf(known.code);
  } finally {
    reporter.end();
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
    await repository?.backend.close();
  }
}
