/**
 * What a command says. With --json: one JSON object a line on stdout, message_type status, summary or error,
 * and nothing else there. Otherwise: results as text on stdout, progress bars and errors on stderr, bars only
 * on a terminal.
 */

import cliProgress from 'cli-progress';

import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import { printable, printableLines } from '../text.js';
import { canAsk } from './ask.js';
import { exitCodeOf } from './exit-codes.js';

export interface ProgressUpdate {
  readonly task: string;
  readonly done: number;
  readonly total: number;
  readonly unit: string;
}

export interface Reporter {
  /** Whether somebody sits there who can be asked. */
  readonly canAsk: boolean;
  /** Progress; may be called often. */
  progress(update: ProgressUpdate): void;
  /** Something the operator should know although all goes on. */
  warning(text: string): void;
  /** The result: `fields` for programs, `text` for people. */
  summary(fields: Record<string, unknown>, text: string): void;
  error(error: CheckpointError): void;
  /** Takes progress bars off the screen. */
  end(): void;
}

/** A status line at most this often: progress is for people and dashboards, not a trace. */
const STATUS_INTERVAL_MS = 200;

export class JsonReporter implements Reporter {
  readonly canAsk = false;
  readonly #results: NodeJS.WritableStream;
  #lastStatusMs = 0;

  constructor(results: NodeJS.WritableStream = process.stdout) {
    this.#results = results;
  }

  progress(update: ProgressUpdate): void {
    const nowMs = Date.now();
    if (nowMs - this.#lastStatusMs < STATUS_INTERVAL_MS && update.done < update.total) return;
    this.#lastStatusMs = nowMs;
    this.#print({ message_type: 'status', ...snakeCase(update) });
  }

  warning(text: string): void {
    this.#print({ message_type: 'status', warning: text });
  }

  summary(fields: Record<string, unknown>): void {
    this.#print({ message_type: 'summary', ...snakeCase(fields) });
  }

  error(error: CheckpointError): void {
    this.#print({ message_type: 'error', ...error.toJSON(), exit_code: exitCodeOf(error.code) });
  }

  end(): void {
    // Nothing is kept on screen.
  }

  #print(message: object): void {
    this.#results.write(`${JSON.stringify(message)}\n`);
  }
}

export class TextReporter implements Reporter {
  readonly canAsk = canAsk();
  readonly #results: NodeJS.WritableStream;
  #bar: cliProgress.SingleBar | undefined;
  #task = '';

  constructor(results: NodeJS.WritableStream = process.stdout) {
    this.#results = results;
  }

  progress(update: ProgressUpdate): void {
    if (!process.stderr.isTTY || update.total === 0) return;
    if (this.#bar === undefined || update.task !== this.#task) {
      this.end();
      this.#task = update.task;
      this.#bar = new cliProgress.SingleBar({
        format: `{task} [{bar}] {percentage}% {value}/{total} ${update.unit}`,
        stream: process.stderr,
        hideCursor: true,
        clearOnComplete: true,
      });
      this.#bar.start(update.total, update.done, { task: update.task });
    }
    this.#bar.setTotal(update.total);
    this.#bar.update(update.done);
  }

  warning(text: string): void {
    this.end();
    process.stderr.write(`warning: ${printableLines(text)}\n`);
  }

  summary(_fields: Record<string, unknown>, text: string): void {
    this.end();
    // Whoever made the text has made what is foreign in it one line each; controls go in any case.
    const clean = text.split('\n').map(printable).join('\n');
    this.#results.write(clean.endsWith('\n') || clean === '' ? clean : `${clean}\n`);
  }

  error(error: CheckpointError): void {
    this.end();
    process.stderr.write(`cairn: ${printableLines(error.message)} [${error.code}]\n`);
    if (error.cause !== undefined)
      process.stderr.write(`  because: ${printableLines(describeError(error.cause))}\n`);
    if (error.hint !== undefined) process.stderr.write(`  ${printableLines(error.hint)}\n`);
  }

  end(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}

/** Any failure as a CheckpointError; what has no code is a defect or the system's, and keeps its text. */
export function asCheckpointError(error: unknown): CheckpointError {
  if (isCheckpointError(error)) return error;
  return new CheckpointError('UNEXPECTED', describeError(error), { cause: error });
}

/**
 * Fields whose keys are data, such as names of environment variables in what the adapter recorded of the
 * machine.
 */
const VERBATIM = new Set(['machine']);

/** camelCase keys to snake_case, through nested plain objects and arrays. */
export function snakeCase(value: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      VERBATIM.has(key) ? inner : snakeValue(inner),
    ]),
  );
}

function snakeValue(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(snakeValue);
  return typeof value === 'object' && value !== null ? snakeCase(value) : value;
}
