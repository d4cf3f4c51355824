/**
 * Character devices that are not what the command line says any more. QEMU exchanges the back end of a serial port
 * while it runs (chardev-change); a restore would start with the one of the command line.
 *
 *     -chardev socket,id=a,path=/a    a         chardev-socket, its addr
 *     -serial file:/b                 serial0   chardev-file, among the open files of the process
 *
 * Only what can have been exchanged is compared: QEMU refuses it of monitors, of mux and of parallel ports. A character device that was
 * added serves a device or an object that was added, which is refused by itself. Of udp, pipe, pty and ports of the
 * host the kind is compared, for QEMU does not say where they lead.
 *
 * Sources: qemu_chr_parse_compat of chardev/char.c and qapi/char.json of QEMU 7.2 and 10.0.
 */

import { lstat, readdir, readlink } from 'node:fs/promises';
import { basename, parse, resolve } from 'node:path';

import { isCheckpointError } from '../../../src/errors.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn } from '../../disks/qcow2/option-fields.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';

const CONTAINER = '/chardevs';
/** That of a machine which is given none. */
const DEFAULT_PORT = 'serial0';

/** What the command line makes of one. */
export interface WrittenChardev {
  readonly label: string;
  /** QOM types without `chardev-`: any of these. */
  readonly kinds: readonly string[];
  /** Of a socket: what of `addr` is known. */
  readonly socket?: { readonly type: 'unix' | 'inet' } & Readonly<Record<string, string>>;
  /** The file that is written to. */
  readonly file?: string;
  /** QEMU makes it of its own, in machines that have such a port. */
  readonly optional?: boolean;
}

/** @returns what differs, in words for the operator @throws VM_GONE, QMP_TIMEOUT */
export async function changedChardevs(
  monitor: Monitor,
  options: readonly QemuOption[],
  { pid, cwd }: { readonly pid: number; readonly cwd: string },
): Promise<readonly string[]> {
  const kinds = await presentKinds(monitor);
  if (kinds === undefined) return [];
  const changes = await Promise.all(
    writtenChardevs(options).map(async (written) => {
      const { label } = written;
      const kind = kinds.get(label);
      if (kind === undefined) return written.optional === true ? [] : [`the chardev ${label} was removed`];
      if (!written.kinds.includes(kind)) return [changed(label, written.kinds[0]!, kind)];
      if (written.socket !== undefined) {
        const addr = await addressOf(monitor, label);
        return addr === undefined || isAt(addr, written.socket, cwd)
          ? []
          : [changed(label, named(written.socket), named(addr))];
      }
      if (written.file !== undefined && (await isLeft(pid, resolve(cwd, written.file))))
        return [`the chardev ${label} does not write to ${written.file} any more`];
      return [];
    }),
  );
  return changes.flat();
}

function changed(label: string, from: string, to: string): string {
  return `the chardev ${label} was changed from ${from} to ${to}`;
}

/** Kinds by label. Undefined when QEMU has no such list. */
async function presentKinds(monitor: Monitor): Promise<ReadonlyMap<string, string> | undefined> {
  const children = await answered(monitor.execute('qom-list', { path: CONTAINER }));
  if (children === undefined) return undefined;
  return new Map(
    asArray(children).flatMap(({ name, type }) => {
      const kind = /^child<chardev-(.+)>$/.exec(asText(type))?.[1];
      return kind === undefined ? [] : [[asText(name), canonical(kind)] as const];
    }),
  );
}

/** Undefined for what QEMU refuses to say. */
async function answered<Value>(reply: Promise<Value>): Promise<Value | undefined> {
  try {
    return await reply;
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return undefined;
    throw error;
  }
}

const ALIASES: ReadonlyMap<string, string> = new Map([
  ['tty', 'serial'],
  ['parport', 'parallel'],
  ['memory', 'ringbuf'],
]);

function canonical(kind: string): string {
  return ALIASES.get(kind) ?? kind;
}

/** Those of a command line that can be held against what is there. */
export function writtenChardevs(options: readonly QemuOption[]): readonly WrittenChardev[] {
  const chardevs = options.flatMap(({ name, value = '' }) => (name === 'chardev' ? ofChardev(value) : []));
  const ports = options
    .filter(({ name }) => name === 'serial')
    .flatMap(({ value = '' }, i) => ofPort(`serial${i}`, value) ?? []);
  // A configuration file may give any of them.
  const isGiven = options.some(
    ({ name, value = '' }) =>
      name === 'serial' || name === 'readconfig' || fieldOf(value, 'id') === DEFAULT_PORT,
  );
  const own: readonly WrittenChardev[] = isGiven
    ? []
    : [{ label: DEFAULT_PORT, kinds: ['vc', 'spiceport', 'stdio', 'mux', 'null'], optional: true }];
  // -set changes single fields of options by their id.
  const isSetLater = (label: string): boolean =>
    options.some(({ name, value = '' }) => name === 'set' && value.startsWith(`chardev.${label}.`));
  return [...chardevs, ...ports, ...own].filter(({ label }) => !isSetLater(label));
}

function ofChardev(value: string): readonly WrittenChardev[] {
  const label = fieldOf(value, 'id');
  const kind = fieldOf(value, 'backend', 'backend');
  if (label === undefined || kind === undefined || isOn(value, 'mux')) return [];
  return [{ label, ...described(canonical(kind), value) }];
}

function described(kind: string, value: string): Omit<WrittenChardev, 'label'> {
  const path = fieldOf(value, 'path');
  switch (kind) {
    case 'vc':
      // A display of its own puts another class in the place of vc.
      return { kinds: ['vc', 'spiceport'] };
    case 'file':
      return { kinds: [kind], ...(path === undefined ? {} : { file: path }) };
    case 'socket':
      return { kinds: [kind], ...socketOf(value, path) };
    default:
      return { kinds: [kind] };
  }
}

function socketOf(value: string, path: string | undefined): Pick<WrittenChardev, 'socket'> {
  if (fieldOf(value, 'fd') !== undefined) return {};
  if (path !== undefined) return { socket: { type: 'unix', path } };
  const port = fieldOf(value, 'port') ?? '';
  const host = fieldOf(value, 'host') ?? '';
  // QEMU says which port it has got, by number.
  const isFixed = /^[1-9]\d*$/.test(port) && fieldOf(value, 'to') === undefined;
  if (!isFixed) return { socket: { type: 'inet' } };
  const isServer = isOn(value, 'server');
  return { socket: { type: 'inet', port, ...(isServer || host === '' ? {} : { host }) } };
}

/** -serial and its like. Undefined for one that stands for another option, for none, or for several. */
function ofPort(label: string, value: string): WrittenChardev | undefined {
  const [, scheme = '', rest = ''] = /^([a-z0-9]+)(?::(.*))?$/s.exec(value) ?? [];
  switch (scheme) {
    case 'null':
    case 'stdio':
    case 'pty':
    case 'msmouse':
    case 'wctablet':
    case 'testdev':
    case 'braille':
    case 'vc':
    case 'pipe':
    case 'udp':
      return { label, ...described(scheme, '') };
    case 'file':
      return { label, kinds: ['file'], file: rest };
    case 'unix':
      return { label, kinds: ['socket'], ...socketOf(rest, fieldOf(rest, 'path', 'path')) };
    case 'tcp':
    case 'telnet':
    case 'tn3270':
    case 'websocket': {
      const [, host = '', port = '', more = ''] = /^([^:,]*):([^,]*)(.*)$/.exec(rest) ?? [];
      return { label, kinds: ['socket'], ...socketOf(`host=${host},port=${port}${more}`, undefined) };
    }
    default:
      return undefined;
  }
}

async function addressOf(
  monitor: Monitor,
  label: string,
): Promise<Readonly<Record<string, string>> | undefined> {
  const path = `${CONTAINER}/${label}`;
  const addr = asObject(await answered(monitor.execute('qom-get', { path, property: 'addr' })));
  const type = asText(addr.type);
  if (type !== 'unix' && type !== 'inet') return undefined;
  return { type, path: asText(addr.path), host: asText(addr.host), port: asText(addr.port) };
}

function isAt(
  addr: Readonly<Record<string, string>>,
  written: Readonly<Record<string, string>>,
  cwd: string,
): boolean {
  return Object.entries(written).every(
    ([key, value]) =>
      addr[key] === value || (key === 'path' && resolve(cwd, addr[key] ?? '') === resolve(cwd, value)),
  );
}

function named({ type, path, host = '', port = '' }: Readonly<Record<string, string>>): string {
  return type === 'unix' ? `the socket ${path}` : `the socket ${host}:${port}`;
}

/**
 * Whether the process writes to another file now. A log that was rotated keeps the first part of its name, in whichever
 * folder (serial-1.log, serial.log.1); one that is not at its place, or a link, says nothing. Nor does what the descriptors of the process are
 * hidden from.
 */
async function isLeft(pid: number, path: string): Promise<boolean> {
  if (/^\/(?:dev|proc)\//.test(path)) return false;
  const isThere = await lstat(path).then(
    (found) => found.isFile(),
    () => false,
  );
  const folder = `/proc/${pid}/fd`;
  const numbers = isThere ? await readdir(folder).catch(() => []) : [];
  if (numbers.length === 0) return false;
  const open = await Promise.all(numbers.map((one) => readlink(`${folder}/${one}`).catch(hiddenOrGone)));
  if (open.includes(undefined)) return false;
  const { name } = parse(path);
  return !open.some((target = '') => {
    const rest = basename(target).slice(name.length);
    return target.startsWith('/') && basename(target).startsWith(name) && /^(?:[-._ ]|$)/.test(rest);
  });
}

/** One that was closed meanwhile leads nowhere; undefined when this process may not know where it leads. */
function hiddenOrGone(error: NodeJS.ErrnoException): '' | undefined {
  return error.code === 'ENOENT' ? '' : undefined;
}
