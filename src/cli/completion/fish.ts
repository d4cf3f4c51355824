/** Completion for fish: a line for each option and each kind of argument. */

import type { CommandWords, WordKind } from './words.js';

export function fishCompletion(commands: readonly CommandWords[]): string {
  return `# Completion of cairn for fish, made by "cairn completion fish".

function __cairn_stored
    set -l repo $CAIRN_REPOSITORY
    set -l words (commandline -opc)
    for i in (seq (count $words))
        switch $words[$i]
            case --repo
                set repo $words[(math $i + 1)]
            case '--repo=*'
                set repo (string replace -- --repo= '' $words[$i])
        end
    end
    cairn __complete $argv[1] --repo="$repo" 2>/dev/null
end

function __cairn_is_bare
    test (count (commandline -opc)) -eq 1
end

function __cairn_is
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end

complete -c cairn -f
complete -c cairn -n __cairn_is_bare -l help -d 'show the help'
complete -c cairn -n __cairn_is_bare -l version -d 'show the version'
${commands.flatMap(linesOf).join('\n')}
`;
}

function linesOf({ name, description, options, arguments: positions }: CommandWords): readonly string[] {
  const here = `complete -c cairn -n ${quoted(`__cairn_is ${name}`)}`;
  const kinds = [...new Set(positions.map(({ kind }) => kind))].filter((kind) => kind !== 'other');
  return [
    `complete -c cairn -n __cairn_is_bare -a ${name} -d ${quoted(description)}`,
    ...options.flatMap(({ flags, description: what, value, isValueOptional }) =>
      flags.map((flag) => {
        const taken = value === undefined || isValueOptional ? '' : ` -r ${offered(value)}`;
        const spelled = flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`;
        return `${here} ${spelled}${taken} -d ${quoted(what)}`.replaceAll('  ', ' ');
      }),
    ),
    ...kinds.map((kind) => `${here} ${offered(kind)}`),
  ];
}

function offered(kind: WordKind): string {
  if (typeof kind !== 'string') return `-f -a ${quoted(kind.join(' '))}`;
  if (kind === 'file') return '-F';
  if (kind === 'folder') return "-f -a '(__fish_complete_directories)'";
  return kind === 'other' ? '-f' : `-f -a '(__cairn_stored ${kind})'`;
}

/** fish knows two escapes between single quotes. */
function quoted(text: string): string {
  return `'${text.replace(/[\\']/g, '\\$&')}'`;
}
