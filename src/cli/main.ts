#!/usr/bin/env node
/** The `cairn` command. */

import { type Command, CommanderError } from 'commander';

import { EXIT } from './exit-codes.js';
import { outputProblem } from './output.js';
import { COMMANDS, emptyProgram, HIDDEN_COMMANDS } from './program.js';
import { printableLines } from '../text.js';

const program = emptyProgram();
for (const load of commandsOf(process.argv.slice(2))) program.addCommand(await load());

// Help and version are printed outside `run`. A reader that has seen enough of them is no failure.
process.stdout.on('error', (error) => {
  const problem = outputProblem(error);
  if (problem.code !== 'OUTPUT_FAILED') return;
  process.stderr.write(`cairn: ${problem.message} [${problem.code}]\n`);
  process.exitCode = EXIT.failure;
});
process.stderr.on('error', () => undefined);
printWarningsPlainly();
try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Commander has printed its message; asking for help or the version is not an error.
  process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
}

/** The one that is called; all of them for help, and for a name that is none. */
function commandsOf(args: readonly string[]): readonly (() => Promise<Command>)[] {
  const [name = ''] = args;
  const called = [COMMANDS, HIDDEN_COMMANDS].find((table) => Object.hasOwn(table, name))?.[name];
  return called === undefined ? Object.values(COMMANDS) : [called];
}

/** Warnings carry texts of QEMU, agents and disks; Node.js prints them as they are. */
function printWarningsPlainly(): void {
  if (process.listenerCount('warning') === 0) return;
  process.removeAllListeners('warning');
  process.on('warning', ({ message }) => process.stderr.write(`warning: ${printableLines(message)}\n`));
}
