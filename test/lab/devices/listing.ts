/** The devices that a QEMU offers, as its `-device help` lists them. */

import { execFileSync } from 'node:child_process';

import { qemuProgram, type QemuVersion } from '../support/lab-files.js';

export interface OfferedDevice {
  readonly name: string;
  /** Empty where none is named. */
  readonly bus: string;
  /** Heading in the list, such as "Storage devices". */
  readonly category: string;
}

/** In the order of the list, each once: a device may stand under several headings. */
export function listDevices(version: QemuVersion): readonly OfferedDevice[] {
  return parseDeviceHelp(ask(version, ['-device', 'help']));
}

/** Such as "10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)". */
export function packageVersion(version: QemuVersion): string {
  return /version (.*)/.exec(ask(version, ['--version']))?.[1] ?? version;
}

export function parseDeviceHelp(text: string): readonly OfferedDevice[] {
  let category = '';
  const found = new Map<string, OfferedDevice>();
  for (const line of text.split('\n')) {
    const heading = /^(\S.*):$/.exec(line)?.[1];
    if (heading !== undefined) category = heading;
    const [, name, bus] = /^name "([^"]+)"(?:, bus ([^,]+))?/.exec(line) ?? [];
    if (name !== undefined && !found.has(name)) found.set(name, { name, bus: bus ?? '', category });
  }
  return [...found.values()];
}

const SYSTEM_MODULES = '/usr/lib/x86_64-linux-gnu/qemu';
/** The list loads all modules, and the second QEMU ends over those of the installed one: it must not see them. */
const WITHOUT_SYSTEM_MODULES = `mount -t tmpfs none ${SYSTEM_MODULES} && exec "$0" "$@"`;

function ask(version: QemuVersion, args: readonly string[]): string {
  const { path, env, firmwareArgs } = qemuProgram(version);
  const command = [path, ...firmwareArgs, ...args];
  const [program, ...rest] =
    version === '7.2' ? command : ['unshare', '-m', 'sh', '-c', WITHOUT_SYSTEM_MODULES, ...command];
  return execFileSync(program!, rest, { env, encoding: 'utf8', timeout: 30_000 });
}
