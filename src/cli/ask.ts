/** Questions to somebody who sits at a terminal. */

import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';

import { CheckpointError } from '../errors.js';

/** Whether there is somebody to ask. */
export function canAsk(): boolean {
  return process.stdin.isTTY && process.stderr.isTTY;
}

/**
 * A passphrase, which does not show.
 * @throws INTERRUPTED when the terminal or the command is closed before the end of the line
 */
export async function askHidden(question: string, signal: AbortSignal): Promise<string> {
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = createInterface({ input: process.stdin, output: nowhere, terminal: true });
  process.stderr.write(question);
  try {
    const closed = new Promise<never>((_, reject) => {
      const interrupted = new CheckpointError('INTERRUPTED', 'no passphrase was given');
      for (const event of ['close', 'SIGINT'] as const) terminal.once(event, () => reject(interrupted));
    });
    return await Promise.race([terminal.question('', { signal }), closed]);
  } finally {
    terminal.close();
    process.stderr.write('\n');
  }
}

/** @returns true for an answer that begins with y; anything else, and the end of the input, is no */
export async function askYesNo(question: string, signal: AbortSignal): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const closed = new Promise<string>((resolve) => terminal.once('close', () => resolve('')));
    const answer = await Promise.race([terminal.question(`${question} [y/N] `, { signal }), closed]);
    return /^y/i.test(answer.trim());
  } finally {
    terminal.close();
  }
}
