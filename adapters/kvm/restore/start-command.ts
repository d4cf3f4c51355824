/**
 * The command that starts a QEMU with other rights than the caller's, by programs that every Linux has:
 * setpriv of util-linux sets them, env of coreutils then sets variables.
 *
 * The variables come last: LD_LIBRARY_PATH of the VM may lead into a folder of the VM's user, and setpriv
 * still runs as root.
 */

import { access, constants } from 'node:fs/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { RightsChange, StartIds } from './start-rights.js';

const SETPRIV = '/usr/bin/setpriv';
const ENV = '/usr/bin/env';
const SHELL = '/bin/sh';
/** Sets hold 64 capabilities; Linux 6.1 knows 41 of them. */
const MAX_CAPABILITIES = 64;

export interface Command {
  readonly program: string;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** @throws RESTORE_RIGHTS when the programs for it are not there */
export async function withRights(command: Command, change: RightsChange | undefined): Promise<Command> {
  if (change === undefined) return command;
  for (const tool of [SETPRIV, ENV]) {
    await access(tool, constants.X_OK).catch((cause: unknown) => {
      throw new CheckpointError('RESTORE_RIGHTS', `${tool} is needed to give QEMU the rights that it had`, {
        cause,
        hint: 'install util-linux and coreutils; --as-root starts QEMU with all rights of the caller',
      });
    });
  }
  const variables = Object.entries(command.env).map(([name, value]) => `${name}=${value}`);
  // To env, what holds "=" is a variable: a program with one in its path is started by a shell.
  const viaShell = command.program.includes('=') ? [SHELL, '-c', 'exec "$0" "$@"'] : [];
  return {
    program: SETPRIV,
    argv: [
      ...rightsArguments(change),
      '--',
      ...[ENV, '-i', ...variables, ...viaShell, command.program, ...command.argv],
    ],
    env: {},
  };
}

/** Source: setpriv(1) of util-linux 2.38 */
export function rightsArguments({ ids, noNewPrivileges }: RightsChange): readonly string[] {
  return [...(ids === undefined ? [] : idArguments(ids)), ...(noNewPrivileges ? ['--no-new-privs'] : [])];
}

function idArguments({ users, groups, moreGroups, capabilities }: StartIds): readonly string[] {
  const [realUser, effectiveUser] = users;
  const [realGroup, effectiveGroup] = groups;
  return [
    ...['--ruid', `${realUser ?? 0}`, '--euid', `${effectiveUser ?? 0}`],
    ...['--rgid', `${realGroup ?? 0}`, '--egid', `${effectiveGroup ?? 0}`],
    ...(moreGroups.length === 0 ? ['--clear-groups'] : ['--groups', moreGroups.join(',')]),
    ...['--inh-caps', capabilityList(capabilities.inheritable)],
    ...['--ambient-caps', capabilityList(capabilities.ambient)],
    ...['--bounding-set', capabilityList(capabilities.bounding)],
  ];
}

function capabilityList(bits: bigint): string {
  const named = Array.from({ length: MAX_CAPABILITIES }, (_, n) => n).filter(
    (n) => ((bits >> BigInt(n)) & 1n) === 1n,
  );
  return ['-all', ...named.map((n) => `+cap_${n}`)].join(',');
}
