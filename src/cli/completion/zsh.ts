/** Completion for zsh, by its own `_arguments`. */

import type { ArgumentWords, CommandWords, OptionWords, WordKind } from './words.js';

/** One that begins with a blank gets no arguments of zsh's own. */
const ACTIONS: Readonly<Record<Exclude<WordKind, readonly string[]>, string>> = {
  vm: ' _cairn_vms',
  checkpoint: ' _cairn_stored checkpoint',
  chain: ' _cairn_stored chain',
  file: '_files',
  folder: '_files -/',
  other: ' ',
};

export function zshCompletion(commands: readonly CommandWords[]): string {
  return `#compdef cairn
# Completion of cairn for zsh, made by "cairn completion zsh".

_cairn_stored() {
  local -a found
  local repo=\${CAIRN_REPOSITORY:-} i
  for ((i = 1; i < $#words; i++)); do
    case $words[i] in
      --repo) repo=$words[i+1] ;;
      --repo=*) repo=\${words[i]#--repo=} ;;
    esac
  done
  # What stands behind the tab describes the word; a colon of the word itself has to be told from the one between the two.
  found=(\${(f)"$(cairn __complete $1 --repo=$repo 2>/dev/null)"})
  found=(\${\${found//:/\\\\:}/$'\\t'/:})
  _describe -t $1 $1 found
}

_cairn_vms() {
  _cairn_stored vm
  if compset -P 'qmp:'; then _files; fi
}

_cairn() {
  local context state state_descr line
  typeset -A opt_args
  _arguments -C '(- *)--help[show the help]' '(- *)--version[show the version]' '1:command:->command' '*::argument:->rest'
  case $state in
    command)
      local -a commands=(
${commands.map(({ name, description }) => `        ${quoted(`${name}:${description}`)}`).join('\n')}
      )
      _describe -t commands command commands
      ;;
    rest)
      case $words[1] in
${commands.map(commandCase).join('\n')}
      esac
      ;;
  esac
}

# Read as the file of an autoloaded function, it is that function; otherwise it is named for the command.
if [[ $funcstack[1] == _cairn ]]; then _cairn "$@"; else compdef _cairn cairn; fi
`;
}

function commandCase({ name, options, arguments: positions }: CommandWords): string {
  const specs = [...options.flatMap(optionSpecs), ...positions.map(argumentSpec)];
  return [
    `        ${name})`,
    `          _arguments -s \\`,
    specs.map((spec) => `            ${quoted(spec)}`).join(' \\\n'),
    '          ;;',
  ].join('\n');
}

function optionSpecs({ flags, description, value, isValueOptional }: OptionWords): readonly string[] {
  const text = `[${description.replace(/[[\]\\]/g, '\\$&')}]`;
  const taken = value === undefined ? '' : `${isValueOptional ? '::' : ':'}value:${actionOf(value)}`;
  return flags.map((flag) => `*${flag}${text}${taken}`);
}

function argumentSpec({ name, kind, isRepeated }: ArgumentWords, index: number): string {
  return `${isRepeated ? '*' : index + 1}:${name}:${actionOf(kind)}`;
}

function actionOf(kind: WordKind): string {
  return typeof kind === 'string' ? ACTIONS[kind] : `(${kind.join(' ')})`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
