/** What every command shares: --repo, --json, signals, errors to exit codes. */

import { Command } from 'commander';

import { CheckpointError, isCheckpointError } from '../errors.js';
import { keepOutOfCoreDumps } from '../ffi/core-dumps.js';
import { Repository } from '../repository/repository.js';
import { openStorage } from '../storage/open.js';
import { EXIT, exitCodeOf } from './exit-codes.js';
import { askForKey, takeKeyOptions, type KeyOptions } from './key-options.js';
import { outputProblem, written } from './output.js';
import { JsonReporter, TextReporter, asCheckpointError, type Reporter } from './reporter.js';

export interface SharedOptions extends KeyOptions {
  readonly repo?: string;
  readonly json?: boolean;
}

export interface CommandContext {
  readonly reporter: Reporter;
  /** Aborted by a signal or a closed output with INTERRUPTED, by an output that fails with OUTPUT_FAILED. */
  readonly signal: AbortSignal;
  /** @throws USAGE without --repo and CAIRN_REPOSITORY */
  readonly repositoryAddress: () => string;
  /** @throws REPO_NOT_FOUND, REPO_VERSION, REPO_DAMAGED, KEY_NEEDED, KEY_WRONG, KEY_UNEXPECTED */
  readonly openRepository: () => Promise<Repository>;
}

/**
 * They end a command cleanly: the guest runs, locks are released, and nothing is left. SIGHUP comes when the
 * terminal is closed.
 */
export const ENDING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;

/** A command with the shared options and an example at the end of its help. */
export function command(name: string, description: string, examples: readonly string[]): Command {
  return plainCommand(name, description, examples)
    .option(
      '--repo <address>',
      'repository: a path, file:PATH or s3://BUCKET/PREFIX (default: $CAIRN_REPOSITORY)',
    )
    .option('--key-file <file>', 'file with the key of an encrypted repository (default: $CAIRN_KEY_FILE)')
    .option('--passphrase-file <file>', 'file with its passphrase (default: $CAIRN_PASSPHRASE_FILE)')
    .option('--passphrase-command <command>', 'prints its passphrase (default: $CAIRN_PASSPHRASE_COMMAND)')
    .option('--json', 'print one JSON object a line on stdout and nothing else');
}

/** One that needs no repository and has nothing to say to programs. */
export function plainCommand(name: string, description: string, examples: readonly string[]): Command {
  return new Command(name)
    .description(description)
    .addHelpText('after', `\nExamples:\n${examples.map((example) => `  $ ${example}`).join('\n')}`)
    .exitOverride();
}

/**
 * Runs the body of a command and sets the exit code. The body returns one when it is not 0.
 * @param results where they are printed
 * @param signals those that end it
 */
export async function run(
  shared: SharedOptions,
  body: (context: CommandContext) => Promise<number | undefined>,
  results: NodeJS.WritableStream = process.stdout,
  signals: readonly NodeJS.Signals[] = ENDING_SIGNALS,
): Promise<void> {
  keepOutOfCoreDumps();
  takeKeyOptions(shared);
  const reporter = shared.json === true ? new JsonReporter(results) : new TextReporter(results);
  const abort = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    abort.abort(new CheckpointError('INTERRUPTED', `interrupted by ${signal}`));
  };
  // A reader such as `head` that has seen enough: end as after a signal, not in the middle of something.
  let problem: CheckpointError | undefined;
  const onOutputError = (error: Error): void => {
    problem ??= outputProblem(error);
    abort.abort(problem);
  };
  for (const signal of signals) process.on(signal, onSignal);
  process.stdout.on('error', onOutputError);
  process.stderr.on('error', onOutputError);
  let repository: Repository | undefined;
  const repositoryAddress = (): string => {
    const address = shared.repo ?? process.env.CAIRN_REPOSITORY ?? '';
    if (address !== '') return address;
    throw new CheckpointError('USAGE', 'no repository was named', {
      hint: 'use --repo ADDRESS or set CAIRN_REPOSITORY',
    });
  };
  try {
    const code = await body({
      reporter,
      signal: abort.signal,
      repositoryAddress,
      openRepository: async () => {
        repository = await Repository.open(await openStorage(repositoryAddress(), askForKey(abort.signal)));
        return repository;
      },
    });
    reporter.end();
    await written(results);
    // All is done: whoever reads no further has seen what they wanted.
    if (problem?.code === 'OUTPUT_FAILED') throw problem;
    process.exitCode = code ?? EXIT.ok;
  } catch (error) {
    // Timers and streams reject an aborted signal with an error of their own.
    const reason: unknown = abort.signal.aborted && !isCheckpointError(error) ? abort.signal.reason : error;
    const known = asCheckpointError(reason);
    // An output that has failed takes no message about that; nor does it when nobody reads it.
    if (problem === undefined) reporter.error(known);
    else if (problem.code === 'OUTPUT_FAILED') new TextReporter().error(problem);
    process.exitCode = exitCodeOf(known.code);
  } finally {
    reporter.end();
    for (const signal of signals) process.off(signal, onSignal);
    await repository?.backend.close();
  }
}
