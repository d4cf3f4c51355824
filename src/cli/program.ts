/** `cairn` without its commands, and the table of those: what the program, its completions and its man pages are made from. */

import { Command } from 'commander';

import { packageVersion } from './package-version.js';

/** In the order of the help. Each is loaded when it is the one that is called, since loading all takes longest of a short command. */
export const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  init: async () => (await import('./commands/init.js')).initCommand(),
  checkpoint: async () => (await import('./commands/checkpoint.js')).checkpointCommand(),
  watch: async () => (await import('./commands/watch.js')).watchCommand(),
  run: async () => (await import('./commands/run.js')).runCommand(),
  status: async () => (await import('./commands/status.js')).statusCommand(),
  list: async () => (await import('./commands/list.js')).listCommand(),
  show: async () => (await import('./commands/show.js')).showCommand(),
  diff: async () => (await import('./commands/diff.js')).diffCommand(),
  analyze: async () => (await import('./commands/analyze.js')).analyzeCommand(),
  verify: async () => (await import('./commands/verify.js')).verifyCommand(),
  forget: async () => (await import('./commands/forget.js')).forgetCommand(),
  prune: async () => (await import('./commands/forget.js')).pruneCommand(),
  restore: async () => (await import('./commands/restore.js')).restoreCommand(),
  rewind: async () => (await import('./commands/rewind.js')).rewindCommand(),
  fork: async () => (await import('./commands/fork.js')).forkCommand(),
  export: async () => (await import('./commands/export.js')).exportCommand(),
  import: async () => (await import('./commands/import.js')).importCommand(),
  receive: async () => (await import('./commands/receive.js')).receiveCommand(),
  release: async () => (await import('./commands/release.js')).releaseCommand(),
  doctor: async () => (await import('./commands/doctor.js')).doctorCommand(),
  key: async () => (await import('./commands/key.js')).keyCommand(),
  unlock: async () => (await import('./commands/unlock.js')).unlockCommand(),
  completion: async () => (await import('./commands/completion.js')).completionCommand(allCommands),
};

/** For the scripts that `cairn completion` prints; not in the help. */
export const HIDDEN_COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  __complete: async () => (await import('./commands/complete.js')).completeCommand(),
};

/** Loads them all. */
export async function allCommands(): Promise<readonly Command[]> {
  const loaded: Command[] = [];
  for (const load of Object.values(COMMANDS)) loaded.push(await load());
  return loaded;
}

export function emptyProgram(): Command {
  return new Command('cairn')
    .description('Incremental, byte-granular, live checkpoints of running virtual machines')
    .version(packageVersion())
    .exitOverride()
    .addHelpText(
      'after',
      `
A VM is named by its address, for example qmp:/run/web1.qmp.
Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 10 no repository, 11 locked, 12 no key or a wrong one, 20 guest not
in the run state it was found in, 21 VM unavailable, 22 refused, 23 repository damaged, 24 chain of another VM, 25 storage,
26 storage did not say whether it was committed, 27 pause ended before its time, 130 interrupted.`,
    );
}
