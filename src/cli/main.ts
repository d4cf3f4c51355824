#!/usr/bin/env node
/** The `cairn` command. */

import { Command, CommanderError } from 'commander';

import { EXIT } from './exit-codes.js';
import { outputProblem } from './output.js';
import { packageVersion } from './package-version.js';
import { printableLines } from '../text.js';

/** In the order of the help. Each is loaded when it is the one that is called, since loading all takes longest of a short command. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  init: async () => (await import('./commands/init.js')).initCommand(),
  checkpoint: async () => (await import('./commands/checkpoint.js')).checkpointCommand(),
  watch: async () => (await import('./commands/watch.js')).watchCommand(),
  list: async () => (await import('./commands/list.js')).listCommand(),
  show: async () => (await import('./commands/show.js')).showCommand(),
  diff: async () => (await import('./commands/diff.js')).diffCommand(),
  analyze: async () => (await import('./commands/analyze.js')).analyzeCommand(),
  verify: async () => (await import('./commands/verify.js')).verifyCommand(),
  forget: async () => (await import('./commands/forget.js')).forgetCommand(),
  prune: async () => (await import('./commands/forget.js')).pruneCommand(),
  restore: async () => (await import('./commands/restore.js')).restoreCommand(),
  rewind: async () => (await import('./commands/rewind.js')).rewindCommand(),
  export: async () => (await import('./commands/export.js')).exportCommand(),
  import: async () => (await import('./commands/import.js')).importCommand(),
  receive: async () => (await import('./commands/receive.js')).receiveCommand(),
  release: async () => (await import('./commands/release.js')).releaseCommand(),
  doctor: async () => (await import('./commands/doctor.js')).doctorCommand(),
  unlock: async () => (await import('./commands/unlock.js')).unlockCommand(),
};

const program = new Command('cairn')
  .description('Incremental, byte-granular, live checkpoints of running virtual machines')
  .version(packageVersion())
  .exitOverride()
  .addHelpText(
    'after',
    `
A VM is named by its address, for example qmp:/run/web1.qmp.
Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 10 no repository, 11 locked, 20 guest not in the run state it
was found in, 21 VM unavailable, 22 refused, 23 repository damaged, 24 chain of another VM, 25 storage, 26 storage did
not say whether it was committed, 27 pause ended before its time, 130 interrupted.`,
  );
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
  return Object.hasOwn(COMMANDS, name) ? [COMMANDS[name]!] : Object.values(COMMANDS);
}

/** Warnings carry texts of QEMU, agents and disks; Node.js prints them as they are. */
function printWarningsPlainly(): void {
  if (process.listenerCount('warning') === 0) return;
  process.removeAllListeners('warning');
  process.on('warning', ({ message }) => process.stderr.write(`warning: ${printableLines(message)}\n`));
}
