/** What can be typed after `cairn`, read from the commands themselves: what completions are made of. */

import type { Command } from 'commander';

/** What a value is, and so which values are offered for it. */
export type WordKind = 'vm' | 'checkpoint' | 'chain' | 'file' | 'folder' | 'other' | readonly string[];

export interface OptionWords {
  /** As they are typed: `--repo`. */
  readonly flags: readonly string[];
  readonly description: string;
  /** Undefined for one without a value. */
  readonly value: WordKind | undefined;
  /** Of an option whose value may be left out. */
  readonly isValueOptional: boolean;
}

export interface ArgumentWords {
  readonly name: string;
  readonly kind: WordKind;
  readonly isRepeated: boolean;
}

export interface CommandWords {
  readonly name: string;
  readonly description: string;
  readonly options: readonly OptionWords[];
  readonly arguments: readonly ArgumentWords[];
}

/** By the word in angle brackets of an option's flags, or the name of an argument. */
const KINDS: Readonly<Record<string, WordKind>> = {
  vm: 'vm',
  subject: 'vm',
  checkpoint: 'checkpoint',
  checkpoints: 'checkpoint',
  from: 'checkpoint',
  to: 'checkpoint',
  name: 'chain',
  file: 'file',
  path: 'file',
  folder: 'folder',
};
/** By the option, where that word says too little. */
const OF_OPTION: Readonly<Record<string, WordKind>> = {
  '--repo': 'folder',
  '--vm': 'vm',
  '--new-name': 'other',
};

/** Of a command that has commands of its own: their names are its argument, and each takes the options of all. */
export function wordsOf(command: Command): CommandWords {
  const { commands } = command;
  const options = [command, ...commands].flatMap(optionsOf);
  return {
    name: command.name(),
    description: command.description(),
    options: [...new Map(options.map((option) => [option.flags.join(), option])).values()],
    arguments:
      commands.length > 0
        ? [{ name: 'command', kind: commands.map((one) => one.name()), isRepeated: false }]
        : command.registeredArguments.map((argument) => ({
            name: argument.name(),
            kind: argument.argChoices ?? kindOf(argument.name()),
            isRepeated: argument.variadic,
          })),
  };
}

function optionsOf(command: Command): readonly OptionWords[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .map(({ short, long, flags, description, argChoices, required, optional }) => {
      const placeholder = /[<[]([^>\]]*)[>\]]/.exec(flags)?.[1] ?? '';
      return {
        flags: [short, long].filter((name) => name !== undefined),
        description,
        value:
          required || optional ? (argChoices ?? OF_OPTION[long ?? ''] ?? kindOf(placeholder)) : undefined,
        isValueOptional: optional,
      };
    });
}

function kindOf(name: string): WordKind {
  return Object.hasOwn(KINDS, name) ? KINDS[name]! : 'other';
}
