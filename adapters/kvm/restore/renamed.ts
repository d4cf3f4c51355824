/**
 * The command line of a copy that may run beside the VM it was made of: everything that a process has for itself gets a
 * name of its own, in the folder where the original lies.
 *
 *     --new-name web2      /run/web1.qmp        -> /run/web2.qmp             the VM's name is in it
 *                          /run/web1/qmp.sock   -> /run/web1/web2-qmp.sock   it is not
 *                          hostfwd=tcp::2222-   -> hostfwd=tcp::0-           any port that is free
 *
 * What cannot be derived stays, and the look at the neighbours refuses it: network devices of the host (`ifname`), ports of
 * network cards, disks, back ends that serve one VM.
 */

import { randomUUID } from 'node:crypto';
import { basename, dirname, join } from 'node:path';

import {
  escapeCommas,
  option,
  splitValue,
  unescapeCommas,
  valueOf,
  withValueOf,
  type QemuOption,
} from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn, withField } from '../../disks/qcow2/option-fields.js';

/** Ports above the recorded one that QEMU tries. */
const PORTS_TRIED = 99;

/** How the paths of a copy follow from those of the original. */
export type Rename = (path: string) => string;

/** @param oldName empty when the VM had none */
export function renaming(oldName: string, newName: string): Rename {
  return (path) => {
    const name = basename(path);
    const isIn = oldName !== '' && name.includes(oldName);
    return join(dirname(path), isIn ? name.replace(oldName, newName) : `${newName}-${name}`);
  };
}

/** Everything into one folder, which is the copy's alone: by the last part of its name, with a number where that is taken. */
export function intoFolder(folder: string): Rename {
  const given = new Map<string, string>();
  return (path) => {
    const before = given.get(path);
    if (before !== undefined) return before;
    const taken = new Set(given.values());
    const name = basename(path);
    let own = join(folder, name);
    for (let n = 2; taken.has(own); n++) own = join(folder, `${n}-${name}`);
    given.set(path, own);
    return own;
  };
}

/** The name in a command line; empty when there is none. */
export function nameIn(options: readonly QemuOption[]): string {
  const value = options.findLast(({ name }) => name === 'name')?.value ?? '';
  return valueOf(value, 'guest', 'guest') ?? '';
}

export function renamed(
  options: readonly QemuOption[],
  newName: string,
  rename: Rename = renaming(nameIn(options), newName),
): readonly QemuOption[] {
  const own = options.map((each) => ({ ...each, value: renamedValue(each, rename, newName) }));
  return own.some(({ name }) => name === 'name') ? own : [...own, option('name', escapeCommas(newName))];
}

function renamedValue({ name, value }: QemuOption, rename: Rename, newName: string): string | undefined {
  if (value === undefined) return undefined;
  switch (name) {
    case 'name':
      return withValueOf(value, 'guest', newName, 'guest');
    case 'uuid':
      return randomUUID();
    case 'pidfile':
    case 'D':
      return rename(value);
    case 'object':
      return fieldOf(value, 'qom-type', 'qom-type') === 'memory-backend-file'
        ? movedField(value, 'mem-path', rename)
        : value;
    case 'qmp':
    case 'monitor':
    case 'serial':
    case 'parallel':
    case 'debugcon':
    case 'gdb':
      return movedLine(value, rename);
    case 'vnc':
      return movedDisplay(value, rename);
    case 'chardev':
      return movedChardev(value, rename);
    case 'netdev':
    case 'nic':
      return movedNetwork(value, rename);
    default:
      return value;
  }
}

function movedField(value: string, key: string, rename: Rename): string {
  const path = fieldOf(value, key);
  return path === undefined || path === '' ? value : withField(value, key, rename(path));
}

/** `unix:PATH,server=on`, `file:PATH`, `tcp:HOST:PORT,server=on`; a client's socket is somebody else's. */
function movedLine(value: string, rename: Rename): string {
  const [first = '', ...more] = splitValue(value);
  const [, prefix, path] = /^((?:mon:)?(?:unix|file):)(.+)$/s.exec(first) ?? [];
  if (prefix === undefined || path === undefined)
    return isOn(value, 'server') && /^(?:mon:)?tcp:/.test(first)
      ? withOtherPorts(value, portIn(first))
      : value;
  if (prefix.endsWith('unix:') && !isOn(value, 'server')) return value;
  return [`${prefix}${escapeCommas(rename(unescapeCommas(path)))}`, ...more].join(',');
}

function movedDisplay(value: string, rename: Rename): string {
  const [first = '', ...more] = splitValue(value);
  if (first.startsWith('unix:'))
    return [`unix:${escapeCommas(rename(unescapeCommas(first.slice('unix:'.length))))}`, ...more].join(',');
  return /:\d+$/.test(first) ? withField(value, 'to', String(PORTS_TRIED)) : value;
}

function movedChardev(value: string, rename: Rename): string {
  const logged = movedField(value, 'logfile', rename);
  const backend = fieldOf(value, 'backend', 'backend');
  if (backend === 'file' || backend === 'pipe') return movedField(logged, 'path', rename);
  if (backend !== 'socket' || !isOn(value, 'server')) return logged;
  if (fieldOf(value, 'path') !== undefined) return movedField(logged, 'path', rename);
  return withOtherPorts(logged, fieldOf(value, 'port') ?? '');
}

function movedNetwork(value: string, rename: Rename): string {
  const type = fieldOf(value, 'type', 'type');
  if (type === 'stream' && isOn(value, 'server')) return movedField(value, 'addr.path', rename);
  if (type === 'dgram') return movedField(value, 'local.path', rename);
  if (type !== 'user') return value;
  return splitValue(value)
    .map((part) => part.replace(/^(hostfwd=(?:tcp|udp)?:[^:]*:)\d+-/, '$10-'))
    .join(',');
}

function withOtherPorts(value: string, port: string): string {
  return /^\d+$/.test(port) ? withField(value, 'to', String(Number(port) + PORTS_TRIED)) : value;
}

function portIn(first: string): string {
  return /:(\d+)$/.exec(first)?.[1] ?? '';
}
