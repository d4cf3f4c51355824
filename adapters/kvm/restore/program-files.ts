/**
 * What a QEMU loads and runs beside its disks: its program, firmware, kernel, libraries, scripts. Whoever can
 * exchange one of these gets what the QEMU has, so a restore refuses what others could have exchanged since
 * the checkpoint.
 *
 * Source: qemu-options.hx of QEMU 7.2 and 10.0. Libraries and firmware that QEMU finds by itself lie in the
 * system's folders, which are root's.
 */

import { isAbsolute, resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import { FileTrust, type Replaceable } from '../../../src/host/file-trust.js';
import { splitValue, unescapeCommas, valueOf, type QemuOption } from '../../disks/qcow2/command-line.js';

/** Options whose whole value is a file. */
const FILE_OPTIONS = new Set([
  'kernel',
  'initrd',
  'shim',
  'dtb',
  'bios',
  'pflash',
  'option-rom',
  'readconfig',
]);
/** Keys of any option whose value is a file that is loaded or run. */
const FILE_KEYS = new Set(['romfile', 'script', 'downscript', 'helper', 'option-rom']);
/** Options whose `file` is loaded as code or tables, and whose first part may stand for it. */
const FILE_KEY_OPTIONS = new Set(['plugin', 'acpitable', 'smbios', 'fw_cfg', 'option-rom']);
/** Variables that list folders, with colons. */
const FOLDER_VARIABLES = ['LD_LIBRARY_PATH', 'QEMU_MODULE_DIR'] as const;

export interface Loaded {
  readonly path: string;
  readonly isFolder: boolean;
}

export interface Start {
  /** Absolute. */
  readonly program: string;
  readonly options: readonly QemuOption[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
}

/**
 * @param users who may exchange them beside root: as whom QEMU starts, and who restores
 * @throws RESTORE_REPLACEABLE naming the first place that others could have changed
 */
export async function refuseReplaceable(start: Start, users: readonly number[]): Promise<void> {
  const trust = new FileTrust(users);
  for (const { path, isFolder } of loadedFiles(start)) {
    const found = await (isFolder ? trust.replaceableIn(path) : trust.replaceable(path));
    if (found !== undefined) throw refusal(path, found);
  }
}

/** Without those that QEMU looks for by a bare name: they lie in a folder of -L, or in the system's. */
export function loadedFiles({ program, options, env, cwd }: Start): readonly Loaded[] {
  const files = [program, ...options.flatMap(filesOf), ...pflashFiles(options)];
  const folders = options.flatMap(({ name, value = '' }) => (name === 'L' ? [value] : []));
  const listed = (names: readonly string[]): string[] =>
    names.flatMap((name) => (env[name] ?? '').split(/[:\s]/).filter((path) => path !== ''));
  const all = [
    ...files.map((path) => ({ path, isFolder: false })),
    ...[...folders, ...listed(FOLDER_VARIABLES)].map((path) => ({ path, isFolder: true })),
  ];
  return all.map(({ path, isFolder }) => ({ path: isAbsolute(path) ? path : resolve(cwd, path), isFolder }));
}

function filesOf({ name, value = '' }: QemuOption): readonly string[] {
  if (value === '') return [];
  if (value.startsWith('{')) return textsOfJson(value, FILE_KEYS);
  if (FILE_OPTIONS.has(name) && !value.startsWith('file=')) return [unescapeCommas(splitValue(value)[0]!)];
  const keyed = splitValue(value).flatMap((part, i) => {
    const equals = part.indexOf('=');
    const key = part.slice(0, Math.max(0, equals));
    const isFile =
      FILE_KEYS.has(key) ||
      (key === 'file' && (FILE_KEY_OPTIONS.has(name) || isLoader(value))) ||
      (i === 0 && equals < 0 && name === 'plugin');
    return isFile ? [unescapeCommas(part.slice(equals + 1))] : [];
  });
  // Tables may be put together from several files; `no` stands for no script.
  const parts = name === 'acpitable' ? keyed.flatMap((list) => list.split(':')) : keyed;
  return parts.filter((path) => path !== '' && path !== 'no');
}

function isLoader(value: string): boolean {
  return valueOf(value, 'driver', 'driver') === 'loader';
}

/** Firmware in flash: `-drive if=pflash`, or the block devices that a property of the machine names. */
function pflashFiles(options: readonly QemuOption[]): readonly string[] {
  const valuesOf = (wanted: string): string[] =>
    options.flatMap(({ name, value }) => (name === wanted && value !== undefined ? [value] : []));
  const ofDrives = valuesOf('drive').flatMap((value) =>
    valueOf(value, 'if') === 'pflash' ? (valueOf(value, 'file') ?? []) : [],
  );
  const nodes = new Set(
    valuesOf('machine').flatMap((value) =>
      ['pflash0', 'pflash1'].flatMap((property) => valueOf(value, property) ?? []),
    ),
  );
  const flash = (): string[] =>
    valuesOf('blockdev').filter((value) => textsAt(value, 'node-name').some((node) => nodes.has(node)));
  // A format stands on the node that has the file.
  for (const value of flash()) for (const below of textsAt(value, 'file')) nodes.add(below);
  return [
    ...ofDrives,
    ...flash().flatMap((value) => [...textsAt(value, 'filename'), ...textsAt(value, 'file.filename')]),
  ];
}

/** Values of a key, in JSON at any depth. */
function textsAt(value: string, key: string): readonly string[] {
  if (value.startsWith('{')) return textsOfJson(value, new Set([key]));
  const text = valueOf(value, key);
  return text === undefined || text === '' ? [] : [text];
}

function textsOfJson(value: string, keys: ReadonlySet<string>): readonly string[] {
  const found: string[] = [];
  try {
    JSON.parse(value, (key, item: unknown) => {
      if (keys.has(key) && typeof item === 'string' && item !== '') found.push(item);
      return item;
    });
  } catch {
    // No JSON after all: QEMU says so.
  }
  return found;
}

function refusal(path: string, found: Replaceable): CheckpointError {
  const which = found.path === path ? path : `${path} could have been exchanged: ${found.path}`;
  return new CheckpointError('RESTORE_REPLACEABLE', `${which} ${found.why}`, {
    hint: `QEMU would load it; look whether it is what it was, and give it to root or to the VM's user alone (chown, chmod go-w ${found.path})`,
    detail: { path, changeable: found.path },
  });
}
