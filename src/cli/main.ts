#!/usr/bin/env node
/** The `cairn` command. */

import { Command, CommanderError } from 'commander';

import { analyzeCommand } from './commands/analyze.js';
import { checkpointCommand } from './commands/checkpoint.js';
import { diffCommand } from './commands/diff.js';
import { doctorCommand } from './commands/doctor.js';
import { exportCommand } from './commands/export.js';
import { forgetCommand, pruneCommand } from './commands/forget.js';
import { importCommand } from './commands/import.js';
import { initCommand } from './commands/init.js';
import { listCommand } from './commands/list.js';
import { receiveCommand } from './commands/receive.js';
import { restoreCommand } from './commands/restore.js';
import { showCommand } from './commands/show.js';
import { unlockCommand } from './commands/unlock.js';
import { verifyCommand } from './commands/verify.js';
import { watchCommand } from './commands/watch.js';
import { EXIT } from './exit-codes.js';
import { outputProblem } from './output.js';
import { packageVersion } from './package-version.js';
import { printableLines } from '../text.js';

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
for (const subcommand of [
  initCommand(),
  checkpointCommand(),
  watchCommand(),
  listCommand(),
  showCommand(),
  diffCommand(),
  analyzeCommand(),
  verifyCommand(),
  forgetCommand(),
  pruneCommand(),
  restoreCommand(),
  exportCommand(),
  importCommand(),
  receiveCommand(),
  doctorCommand(),
  unlockCommand(),
]) {
  program.addCommand(subcommand);
}

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

/** Warnings carry texts of QEMU, agents and disks; Node.js prints them as they are. */
function printWarningsPlainly(): void {
  if (process.listenerCount('warning') === 0) return;
  process.removeAllListeners('warning');
  process.on('warning', ({ message }) => process.stderr.write(`warning: ${printableLines(message)}\n`));
}
