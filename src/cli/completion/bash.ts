/**
 * Completion for bash 4.4 and later. It needs nothing of the package bash-completion: words are taken from the line itself, since bash
 * cuts them at the colons of addresses, and what it has of a word before the last colon is taken off the answers.
 */

import type { CommandWords, WordKind } from './words.js';

const BODY = `
_cairn_complete() {
  local line=\${COMP_LINE:0:COMP_POINT} current repo='' command options valued arguments kind word position=0 i
  local -a words=()
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  current=\${words[-1]}
  COMPREPLY=()
  if ((\${#words[@]} <= 2)); then
    mapfile -t COMPREPLY < <(compgen -W "$_cairn_commands --help --version" -- "$current")
    return
  fi
  command=\${words[1]}
  _cairn_words "$command" || return
  for ((i = 2; i < \${#words[@]} - 1; i++)); do
    word=\${words[i]}
    if [[ $word == --repo=* ]]; then
      repo=\${word#--repo=}
    elif [[ " $valued" == *" $word="* ]]; then
      i=$((i + 1))
      ((i < \${#words[@]} - 1)) || break
      [[ $word == --repo ]] && repo=\${words[i]}
    elif [[ $word != -* ]]; then
      position=$((position + 1))
    fi
  done
  kind=''
  word=\${words[-2]}
  if [[ $current == --*=* ]]; then
    word=\${current%%=*}
    current=\${current#*=}
  fi
  if [[ " $valued" == *" $word="* ]]; then
    kind=" $valued "
    kind=\${kind#* "$word="}
    kind=\${kind%% *}
  elif [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options --help" -- "$current")
    return
  else
    # shellcheck disable=SC2206 # The list is split on purpose.
    local -a kinds=($arguments)
    ((\${#kinds[@]} > 0)) || return
    if ((position < \${#kinds[@]})); then kind=\${kinds[position]}; else kind=\${kinds[-1]}; fi
    ((position < \${#kinds[@]})) || [[ $kind == *... ]] || return
    kind=\${kind%...}
  fi
  case $kind in
    choices:*)
      kind=\${kind#choices:}
      mapfile -t COMPREPLY < <(compgen -W "\${kind//,/ }" -- "$current")
      ;;
    folder) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    vm | checkpoint | chain)
      mapfile -t COMPREPLY < <("\${words[0]}" __complete "$kind" "--repo=\${repo:-$CAIRN_REPOSITORY}" 2>/dev/null |
        while IFS=$'\\t' read -r word _; do [[ $word == "$current"* ]] && printf '%s\\n' "$word"; done)
      if [[ $kind == vm && $current == qmp:* ]]; then
        mapfile -t -O "\${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -P qmp: -- "\${current#qmp:}")
      fi
      ;;
  esac
  if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
    word=\${current%"\${current##*:}"}
    COMPREPLY=("\${COMPREPLY[@]#"$word"}")
  fi
}
complete -F _cairn_complete cairn
`;

export function bashCompletion(commands: readonly CommandWords[]): string {
  const cases = commands.map(({ name, options, arguments: positions }) => {
    const flags = options.flatMap((option) => option.flags);
    const valued = options.flatMap(({ flags: names, value, isValueOptional }) =>
      value === undefined || isValueOptional ? [] : names.map((flag) => `${flag}=${kindWord(value)}`),
    );
    const kinds = positions.map(({ kind, isRepeated }) => `${kindWord(kind)}${isRepeated ? '...' : ''}`);
    return [
      `    ${name})`,
      `      options='${flags.join(' ')}'`,
      `      valued='${valued.join(' ')}'`,
      `      arguments='${kinds.join(' ')}'`,
      '      ;;',
    ].join('\n');
  });
  return `# Completion of cairn for bash, made by "cairn completion bash".
_cairn_commands='${commands.map(({ name }) => name).join(' ')}'

# Says of a command: its options, those with a value and what that is, and what its arguments are.
_cairn_words() {
  case $1 in
${cases.join('\n')}
    *) return 1 ;;
  esac
}
${BODY}`;
}

function kindWord(kind: WordKind): string {
  return typeof kind === 'string' ? kind : `choices:${kind.join(',')}`;
}
