import { Argument, type Command } from 'commander';

import { bashCompletion } from '../completion/bash.js';
import { fishCompletion } from '../completion/fish.js';
import { wordsOf } from '../completion/words.js';
import { zshCompletion } from '../completion/zsh.js';
import { plainCommand, run } from '../command.js';

const SCRIPTS = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion } as const;
type Shell = keyof typeof SCRIPTS;

/** @param allCommands all that the script is to know */
export function completionCommand(allCommands: () => Promise<readonly Command[]>): Command {
  return plainCommand('completion', 'print a script with which a shell completes cairn', [
    'cairn completion bash >/etc/bash_completion.d/cairn',
    'cairn completion zsh >/usr/local/share/zsh/site-functions/_cairn',
    'cairn completion fish >~/.config/fish/completions/cairn.fish',
  ])
    .addArgument(new Argument('<shell>', 'whose script').choices(Object.keys(SCRIPTS)))
    .action((shell: Shell) =>
      run({}, async ({ reporter }) => {
        const commands = (await allCommands()).map(wordsOf);
        reporter.summary({}, SCRIPTS[shell](commands));
        return undefined;
      }),
    );
}
