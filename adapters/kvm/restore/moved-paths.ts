/**
 * `--set-path OLD=NEW`: folders that lie elsewhere now. All that the checkpoint has recorded below OLD is taken to lie below
 * NEW: images and their snapshots, sockets, logs, memory files, the program, the folder in which it was started.
 *
 *     --set-path /srv/vms=/data     /srv/vms/web1/disk.qcow2  ->  /data/web1/disk.qcow2
 *                                   unix:/srv/vms/web1/qmp    ->  unix:/data/web1/qmp
 *                                   /srv/vms2/disk.qcow2          is another folder's, and stays
 *
 * Of several the longest OLD counts, and a path moves once. What is inside of files (a backing file's name, -readconfig)
 * stays as it is there.
 */

import { normalize, relative, resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { disksOfStoppedQemu } from '../../disks/disk-drivers.js';
import {
  escapeCommas,
  formatCommandLine,
  parseCommandLine,
  splitValue,
  unescapeCommas,
  type QemuOption,
} from '../../disks/qcow2/command-line.js';
import { parseJson } from '../../../src/records/json-text.js';

/** Where a path lies now. @returns the same text for what does not move */
type Move = (path: string) => string;

/** Options whose whole value is a path, in which a comma is nothing special. */
const WHOLE = new Set([
  ...['', 'hda', 'hdb', 'hdc', 'hdd', 'fda', 'fdb', 'cdrom', 'sd', 'pflash', 'mtdblock'],
  ...['kernel', 'initrd', 'dtb', 'bios', 'L', 'pidfile', 'D', 'mem-path', 'chroot', 'readconfig'],
]);
/** A path in these is one of the guest, or none. */
const OF_GUEST = new Set(['append', 'name']);
/** `unix:PATH`, `mon:unix:PATH`, `file:PATH`, `fat:rw:PATH`. */
const PREFIXED = /^((?:[a-z0-9]+:)+)(\/.*)$/s;

/**
 * @param texts each `OLD=NEW`, two absolute paths
 * @throws USAGE
 */
export function pathMove(texts: readonly string[]): Move {
  const moves = texts.map((text) => {
    const [, from, to] = /^(\/[^\0]*?)=(\/[^\0]*)$/s.exec(text) ?? [];
    if (from === undefined || to === undefined) {
      throw new CheckpointError('USAGE', `"${text}" does not say where a folder has moved`, {
        hint: 'write --set-path OLD=NEW, both as absolute paths',
      });
    }
    return { from: bare(from), to: bare(to) };
  });
  moves.sort((a, b) => b.from.length - a.from.length);
  return (path) => {
    if (!path.startsWith('/')) return path;
    const lean = normalize(path);
    const move = moves.find(({ from }) => lean === from || lean.startsWith(from === '/' ? from : `${from}/`));
    return move === undefined ? path : resolve(move.to, relative(move.from, lean));
  };
}

function bare(path: string): string {
  const lean = normalize(path);
  return lean === '/' ? lean : lean.replace(/\/$/, '');
}

/**
 * The checkpoint of a machine that has always lain where it lies now.
 * @throws USAGE, also when nothing of the machine lies below an OLD
 */
export function withMovedPaths(
  source: CheckpointSource,
  texts: readonly string[] | undefined,
): CheckpointSource {
  if (texts === undefined || texts.length === 0) return source;
  for (const text of texts) {
    if (isOfUse(source, pathMove([text]))) continue;
    throw new CheckpointError('USAGE', `--set-path ${text}: nothing of the recorded machine lies there`, {
      hint: 'cairn show prints the recorded command line',
    });
  }
  const { checkpointId, hypervisor, machineType, layout, frozen } = source;
  return {
    ...{ checkpointId, hypervisor, machineType, layout, frozen },
    ...moved(source, pathMove(texts)),
    deviceState: () => source.deviceState(),
    pages: (signal) => source.pages(signal),
    pagesAsStored: (signal) => source.pagesAsStored(signal),
  };
}

/** Whether anything of the machine moves. */
function isOfUse(source: CheckpointSource, move: Move): boolean {
  let hasMoved = false;
  moved(source, (path) => {
    const now = move(path);
    hasMoved ||= now !== path;
    return now;
  });
  return hasMoved;
}

function moved(source: CheckpointSource, move: Move): Pick<CheckpointSource, 'machine' | 'disks'> {
  const { machine } = source;
  const drivers = disksOfStoppedQemu(machine);
  const { argv, cwd, program, qmpPath, presentDisks } = machine;
  const folder = typeof cwd === 'string' ? cwd : '/';
  const single = (value: Json | undefined, key: string): JsonObject =>
    typeof value === 'string' ? { [key]: move(value) } : {};
  return {
    machine: {
      ...machine,
      ...(isTexts(argv) ? { argv: movedArguments(argv, folder, move) } : {}),
      ...single(cwd, 'cwd'),
      ...single(program, 'program'),
      ...single(qmpPath, 'qmpPath'),
      ...(Array.isArray(presentDisks)
        ? { presentDisks: (presentDisks as readonly Json[]).map((disk) => ofDisk(disk, move)) }
        : {}),
    },
    disks: source.disks.map((disk) => drivers.movedBy(disk, move)),
  };
}

function isTexts(value: Json | undefined): value is readonly string[] {
  return Array.isArray(value) && value.every((one) => typeof one === 'string');
}

function ofDisk(disk: Json, move: Move): Json {
  const path = (disk as JsonObject | null)?.path;
  return typeof path === 'string' ? { ...(disk as JsonObject), path: move(path) } : disk;
}

function movedArguments([name = '', ...rest]: readonly string[], cwd: string, move: Move): string[] {
  const options = parseCommandLine(rest).map((each) => ({ ...each, value: movedValue(each, cwd, move) }));
  return [name, ...formatCommandLine(options)];
}

function movedValue({ name, value }: QemuOption, cwd: string, move: Move): string | undefined {
  if (value === undefined || OF_GUEST.has(name)) return value;
  const moveText = (text: string): string => movedText(text, cwd, move);
  if (WHOLE.has(name)) return moveText(value);
  if (value.startsWith('{')) return movedJson(value, moveText);
  return splitValue(value)
    .map((part) => {
      const [, key = '', text = part] = /^([A-Za-z0-9_.-]+=)(.*)$/s.exec(part) ?? [];
      const plain = unescapeCommas(text);
      const now = moveText(plain);
      return now === plain ? part : `${key}${escapeCommas(now)}`;
    })
    .join(',');
}

/** A relative path that leads into a folder that has moved becomes absolute; one that goes with its folder stays. */
function movedText(text: string, cwd: string, move: Move): string {
  const [, prefix = '', path = text] = PREFIXED.exec(text) ?? [];
  if (path.startsWith('/')) return `${prefix}${move(path)}`;
  if (!path.includes('/') || path.includes(':') || move(cwd) !== cwd) return text;
  const absolute = resolve(cwd, path);
  const now = move(absolute);
  return now === absolute ? text : now;
}

function movedJson(value: string, moveText: Move): string {
  const inner = (json: Json): Json => {
    if (typeof json === 'string') return moveText(json);
    if (Array.isArray(json)) return json.map(inner);
    if (typeof json !== 'object' || json === null) return json;
    return Object.fromEntries(Object.entries(json).map(([key, one]) => [key, inner(one)]));
  };
  try {
    return JSON.stringify(inner(parseJson(value)));
  } catch {
    // What it means, QEMU says.
    return value;
  }
}
