/**
 * Where a QEMU command line names disk images, and how another image takes the place of one.
 *
 *     -drive file=P,format=F      -drive driver=F,file.filename=P       -hda P     P (alone)
 *     -blockdev driver=F,file.driver=file,file.filename=P               (also as JSON)
 *     -blockdev driver=file,filename=P,node-name=N  -blockdev driver=F,file=N
 *
 * The format that stands beside the path changes with it.
 */

import { resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import { isLocalPath } from '../../qemu/image-names.js';
import { option, valueOf, withoutValueOf, withValueOf, type QemuOption } from './command-line.js';
import { fieldOf, withField, withoutField } from './option-fields.js';

export interface DiskReference {
  /** Place of the option that names the path. */
  readonly at: number;
  /** What -drive calls it, by which QEMU lists it, too; undefined where the command line gives no such name. */
  readonly id: string | undefined;
  /** Absolute; a name such as `rbd:vms/web1` as it is; empty for a drive without a medium. */
  readonly path: string;
  /** Undefined when the command line leaves it to QEMU to find out. */
  readonly format: string | undefined;
  /**
   * The whole command line with another image in place of this one.
   * @param format of that image; default qcow2
   * @throws VM_UNSUPPORTED
   */
  replace(options: readonly QemuOption[], path: string, format?: string): QemuOption[];
  /** The whole command line with an empty drive. @throws VM_UNSUPPORTED where a drive needs a medium */
  empty(options: readonly QemuOption[]): QemuOption[];
}

const PLAIN = new Set(['', 'hda', 'hdb', 'hdc', 'hdd', 'fda', 'fdb', 'cdrom', 'sd', 'pflash', 'mtdblock']);
const PATH_KEYS = ['file', 'file.filename', 'filename'];

export function diskReferences(options: readonly QemuOption[], cwd: string): DiskReference[] {
  return options.flatMap((each, at) => {
    const value = each.value ?? '';
    if (PLAIN.has(each.name)) return [plainReference(at, value, cwd)];
    if (each.name === 'drive') return [driveReference(at, value, cwd)];
    if (each.name === 'blockdev') return blockdevReference(at, value, options, cwd);
    return [];
  });
}

function plainReference(at: number, value: string, cwd: string): DiskReference {
  return {
    at,
    id: undefined,
    path: absolute(value, cwd),
    format: undefined,
    replace: (options, path) => withValueAt(options, at, path),
    empty: (options) => {
      const drive = EMPTY_DRIVES.get(options[at]!.name);
      if (drive === undefined) throw unsupported(`take ${value} out of`, 'its drive is never empty');
      return options.map((each, i) => (i === at ? option('drive', drive) : each));
    },
  };
}

/** What the short forms stand for (qemu-options.hx), with no medium in it. */
const EMPTY_DRIVES: ReadonlyMap<string, string> = new Map([
  ['cdrom', 'index=2,media=cdrom'],
  ['fda', 'if=floppy,index=0'],
  ['fdb', 'if=floppy,index=1'],
]);

function driveReference(at: number, value: string, cwd: string): DiskReference {
  const named = PATH_KEYS.find((each) => valueOf(value, each) !== undefined);
  const key = named ?? 'file';
  const formatKey = valueOf(value, 'driver') === undefined ? 'format' : 'driver';
  return {
    at,
    id: valueOf(value, 'id'),
    path: named === undefined ? '' : absolute(valueOf(value, key) ?? '', cwd),
    format: valueOf(value, formatKey),
    replace: (options, path, format = 'qcow2') => {
      const now = options[at]!.value ?? '';
      return withValueAt(options, at, withValueOf(withValueOf(now, key, path), formatKey, format));
    },
    empty: (options) => {
      const now = options[at]!.value ?? '';
      return withValueAt(options, at, withoutValueOf(withoutValueOf(now, key), formatKey));
    },
  };
}

function blockdevReference(
  at: number,
  value: string,
  options: readonly QemuOption[],
  cwd: string,
): DiskReference[] {
  const node = blockNode(value);
  const inner = node.get('file.filename');
  if (inner !== undefined) {
    return [
      {
        at,
        id: undefined,
        path: absolute(inner, cwd),
        format: node.get('driver'),
        replace: (now, path, format = 'qcow2') => {
          const changed = blockNode(now[at]!.value ?? '').with('file.filename', path);
          return withValueAt(now, at, asFormat(changed, path, format).value);
        },
        empty: () => {
          throw unsupported(`take ${inner} out of`, 'a block node has a medium');
        },
      },
    ];
  }
  const filename = node.get('filename');
  if (filename === undefined) return [];
  const name = node.get('node-name');
  const formatAt = options.findIndex(
    (each) =>
      each.name === 'blockdev' && name !== undefined && blockNode(each.value ?? '').get('file') === name,
  );
  return [
    {
      at,
      id: undefined,
      path: absolute(filename, cwd),
      format: formatAt < 0 ? undefined : blockNode(options[formatAt]!.value ?? '').get('driver'),
      replace: (now, path, format = 'qcow2') => {
        if (formatAt < 0) throw unsupported(`put ${path} into`, 'no format node stands on it');
        const changed = withValueAt(now, at, blockNode(now[at]!.value ?? '').with('filename', path).value);
        const node = blockNode(changed[formatAt]!.value ?? '');
        return withValueAt(changed, formatAt, asFormat(node, path, format).value);
      },
      empty: () => {
        throw unsupported(`take ${filename} out of`, 'a block node has a medium');
      },
    },
  ];
}

/** A -blockdev in either of its two forms. Keys with a dot lead into nested objects. */
interface BlockNode {
  readonly value: string;
  get(key: string): string | undefined;
  with(key: string, to: string): BlockNode;
  without(key: string): BlockNode;
}

function blockNode(value: string): BlockNode {
  return {
    value,
    get: (key) => fieldOf(value, key),
    with: (key, to) => blockNode(withField(value, key, to)),
    without: (key) => blockNode(withoutField(value, key)),
  };
}

/**
 * An image names its backing file itself. A backing node that the command line gave the former image would be
 * taken in place of that image, whose changes would be lost.
 */
function asFormat(node: BlockNode, path: string, format: string): BlockNode {
  const driver = node.get('driver');
  if (
    driver !== 'qcow2' &&
    (driver !== 'raw' || node.get('offset') !== undefined || node.get('size') !== undefined)
  ) {
    throw unsupported(`put ${path} into`, `its block node has the driver "${driver ?? ''}"`);
  }
  return node.with('driver', format).without('backing');
}

function unsupported(what: string, why: string): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', `cannot ${what} the recorded command line: ${why}`, {
    hint: 'name the disk with --set-arg and pass --keep-disks',
  });
}

function withValueAt(options: readonly QemuOption[], at: number, value: string): QemuOption[] {
  return options.map((each, i) => (i === at ? { ...each, value } : each));
}

/** QEMU takes a path with or without the prefix "file:". */
/** Names of images that are no files, such as `rbd:vms/web1`, are left as they are. */
function absolute(name: string, cwd: string): string {
  const path = name.replace(/^file:/, '');
  return isLocalPath(path) ? resolve(cwd, path) : path;
}
