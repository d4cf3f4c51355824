/**
 * The disks and media that a QEMU has now, beside those of its command line. A mirror with pivot, a snapshot by
 * another tool, a commit, a changed or ejected medium: after any of these the command line names what is no longer
 * there, and a QEMU started by it would go on over another disk without a word.
 *
 *     query-block  --+
 *                    +-- paired by drive, file, chain --> PresentDisk { path, option: 12 } --> manifest
 *     command line --+                                        |
 *                            restore: option 12 names path <--+--> query-block of the new QEMU says the same
 */

import { realpath } from 'node:fs/promises';
import { resolve } from 'node:path';

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { Json } from '../../../src/types.js';
import { valueOf, type QemuOption } from '../../disks/qcow2/command-line.js';
import { imageInfo } from '../../disks/qcow2/qemu-img.js';
import { diskReferences, type DiskReference } from '../../disks/qcow2/restore-disk-options.js';
import { backingPathsOf } from '../../qemu/block-devices.js';
import { imagePath, isLocalPath, isTemporaryImage } from '../../qemu/image-names.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';
import { isDiskLimits, limitsOf, type DiskLimits } from './disk-limits.js';

/** A drive of the guest, and what is in it. */
export interface PresentDisk {
  /** Path of the device in QEMU's object model; of a drive without one, the name of the drive. */
  readonly device: string;
  /** As QEMU names it; empty for a drive without a medium. */
  readonly path: string;
  readonly format: string;
  readonly readOnly: boolean;
  /** Place of the option that names something else, among those of the recorded command line. */
  readonly option?: number;
  /** Its image is one that QEMU makes at each start; see -snapshot. */
  readonly temporary?: boolean;
  /** Absent for a drive without a medium, and in checkpoints of older versions. */
  readonly limits?: DiskLimits;
}

/** The same with what it is found by in the command line. */
export interface ListedDisk extends PresentDisk {
  /** What -drive calls it. */
  readonly drive: string;
  readonly backingPaths: readonly string[];
}

export interface DiskPicture {
  readonly disks: readonly PresentDisk[];
  /** What no command line could say of them, in words for the operator. */
  readonly problems: readonly string[];
}

/** All drives of a QEMU, in the order in which it lists them. @throws VM_GONE */
export async function listPresentDisks(monitor: Monitor): Promise<readonly ListedDisk[]> {
  return presentDisksOf(await monitor.execute('query-block'));
}

/** A reply of query-block. */
export function presentDisksOf(reply: Json): readonly ListedDisk[] {
  return asArray(reply).map((device) => {
    const inserted = asObject(device.inserted);
    const image = asObject(inserted.image);
    const drive = asText(device.device);
    return {
      device: asText(device.qdev) || drive,
      drive,
      path: imagePath(asText(image.filename) || asText(inserted.file)),
      format: asText(inserted.drv),
      readOnly: inserted.ro === true,
      backingPaths: backingPathsOf(image),
      ...(inserted.drv === undefined ? {} : { limits: limitsOf(inserted) }),
    };
  });
}

/**
 * Finds the option of each disk: by the name of the drive, by the file, by the chain of backing files, and at
 * last what is left when that is just one of each.
 * @param options the recorded command line
 */
export async function pairDisks(
  found: readonly ListedDisk[],
  options: readonly QemuOption[],
  cwd: string,
): Promise<DiskPicture> {
  const free = new Set(diskReferences(options, cwd));
  const optionOf = new Map<ListedDisk, DiskReference>();
  const unplaced = (): ListedDisk[] => found.filter((disk) => !optionOf.has(disk));
  const pair = async (
    fits: (disk: ListedDisk, reference: DiskReference) => boolean | Promise<boolean>,
  ): Promise<void> => {
    for (const disk of unplaced()) {
      for (const reference of free) {
        if (!(await fits(disk, reference))) continue;
        optionOf.set(disk, reference);
        free.delete(reference);
        break;
      }
    }
  };
  await pair((disk, { id }) => id !== undefined && id === disk.drive);
  await pair(({ path }, reference) => isSameFile(path, reference.path, cwd));
  await pair(({ backingPaths }, reference) => isOneOf(reference.path, backingPaths, cwd));
  await pair(({ path }, reference) => stoodOn(path, reference.path, cwd));
  // A node that the command line gives a disk for its backing file is no other disk's.
  const below = found.flatMap(({ backingPaths }) => backingPaths);
  for (const reference of free) if (await isOneOf(reference.path, below, cwd)) free.delete(reference);
  if (free.size === 1 && unplaced().length === 1) await pair(() => true);

  const disks: PresentDisk[] = [];
  const problems: string[] = [];
  for (const listed of found) {
    const { device, path, format, readOnly, limits } = listed;
    const disk = { device, path, format, readOnly, ...(limits === undefined ? {} : { limits }) };
    const reference = optionOf.get(listed);
    if (reference !== undefined && isTemporary(options, reference.at))
      disks.push({ ...disk, temporary: true });
    else if (await isAsWritten(listed, reference, cwd)) disks.push(disk);
    else if (reference === undefined) problems.push(`${path} in ${device}, which no option of it names`);
    else disks.push({ ...disk, option: reference.at });
  }
  try {
    withPresentDisks(options, cwd, disks);
  } catch (error) {
    problems.push(describeError(error));
  }
  return { disks, problems };
}

async function isAsWritten(
  { path }: ListedDisk,
  reference: DiskReference | undefined,
  cwd: string,
): Promise<boolean> {
  // Whether an option stands for such a name is not told by a path.
  if (path !== '' && !isLocalPath(path)) return true;
  if (reference === undefined) return path === '';
  return path === reference.path || isSameFile(path, reference.path, cwd);
}

/** With -snapshot what the guest writes goes into a file without a name, above that of the option. */
function isTemporary(options: readonly QemuOption[], at: number): boolean {
  if (options.some(({ name }) => name === 'snapshot')) return true;
  const { name, value = '' } = options[at]!;
  return name === 'drive' && ['on', 'yes', 'true'].includes(valueOf(value, 'snapshot') ?? '');
}

/**
 * The command line with the disks that the checkpoint saw.
 * @param options the recorded command line, of whose options `disks` give the places
 * @throws VM_UNSUPPORTED
 */
export function withPresentDisks(
  options: readonly QemuOption[],
  cwd: string,
  disks: readonly PresentDisk[],
): readonly QemuOption[] {
  let now = options;
  for (const { option, path, format } of disks) {
    if (option === undefined) continue;
    const reference = diskReferences(options, cwd).find(({ at }) => at === option);
    if (reference === undefined) {
      throw new CheckpointError('VM_UNSUPPORTED', `the recorded option ${option} names no disk`, {
        hint: 'name the disk with --set-arg and pass --keep-disks',
      });
    }
    now = path === '' ? reference.empty(now) : reference.replace(now, resolve(cwd, path), format);
  }
  return now;
}

/**
 * What the new QEMU has in its drives that it should not have, in words for the operator. Where the operator has
 * changed drives or devices, the devices may have other paths in QEMU: then only files count.
 * @param instead images that were put in the place of others, by the absolute path of those
 * @param edits of the command line by the operator
 */
export async function strayDisks(
  expected: readonly PresentDisk[],
  found: readonly PresentDisk[],
  given: {
    readonly cwd: string;
    readonly instead: ReadonlyMap<string, string>;
    readonly edits: readonly string[];
  },
): Promise<readonly string[]> {
  const { cwd, instead, edits } = given;
  const pathOf = (disk: PresentDisk | undefined): string => {
    if (disk === undefined || disk.path === '') return '';
    return instead.get(resolve(cwd, disk.path)) ?? disk.path;
  };
  const has = (disk: PresentDisk): string => (disk.path === '' ? 'no medium' : disk.path);
  const strays: string[] = [];
  if (edits.some((edit) => EDIT_OF_DISKS.test(edit))) {
    const allowed = expected.map(pathOf);
    for (const disk of found) {
      const isNamed = edits.some((edit) => edit.includes(disk.path)) || isTemporaryImage(disk.path);
      if (!isNamed && !allowed.includes(disk.path) && !(await isOneOf(disk.path, allowed, cwd)))
        strays.push(`${disk.device} has ${has(disk)}, which the VM had not`);
    }
    return strays;
  }
  for (const disk of found) {
    const before = expected.find(({ device }) => device === disk.device);
    if (before?.temporary === true && disk.path !== '') continue;
    const path = pathOf(before);
    if (path === disk.path || (await isSameFile(path, disk.path, cwd))) {
      if (path !== '' && before !== undefined && before.readOnly !== disk.readOnly)
        strays.push(
          `${disk.device} ${disk.readOnly ? 'cannot be written' : 'can be written'}, as it was not`,
        );
      continue;
    }
    strays.push(`${disk.device} has ${has(disk)} instead of ${path === '' ? 'no medium' : path}`);
  }
  for (const { device, path } of expected)
    if (path !== '' && !found.some((disk) => disk.device === device))
      strays.push(`${device} is not there, which had ${path}`);
  return strays;
}

/** Options after which drives or devices are not those of the record. */
const EDIT_OF_DISKS = /^--?(?:device|drive|blockdev|hd[a-d]|cdrom|fd[ab]|sd|pflash|mtdblock|snapshot)\b/;

async function isSameFile(one: string, other: string, cwd: string): Promise<boolean> {
  if (one === '' || other === '') return false;
  return (await realOrSame(one, cwd)) === (await realOrSame(other, cwd));
}

async function isOneOf(path: string, others: readonly string[], cwd: string): Promise<boolean> {
  for (const other of others) if (await isSameFile(path, other, cwd)) return true;
  return false;
}

/** Whether the image at `top` has stood on `path`: what was written to it was committed, and it was let go. */
async function stoodOn(path: string, top: string, cwd: string): Promise<boolean> {
  if (path === '' || top === '') return false;
  const { backingPath } = await imageInfo(top).catch(() => ({ backingPath: undefined }));
  return backingPath !== undefined && isSameFile(path, backingPath, cwd);
}

async function realOrSame(path: string, cwd: string): Promise<string> {
  const absolute = resolve(cwd, path.replace(/^file:/, ''));
  return realpath(absolute).catch(() => absolute);
}

/** What a manifest says of disks. @throws RESTORE_FAILED for what no checkpoint has written */
export function readPresentDisks(record: Json | undefined): readonly PresentDisk[] | undefined {
  if (record === undefined) return undefined;
  if (Array.isArray(record) && record.every(isPresentDisk)) return record;
  throw new CheckpointError(
    'RESTORE_FAILED',
    'what the checkpoint says of the disks of its VM is malformed',
    {
      hint: 'start a QEMU with the same devices and -incoming yourself and name its address with --to',
    },
  );
}

function isPresentDisk(one: unknown): one is PresentDisk {
  const { device, path, format, readOnly, option, temporary, limits } = asObject(one as Json);
  const isText = (value: Json | undefined): boolean => typeof value === 'string' && !value.includes('\0');
  return (
    [device, path, format].every(isText) &&
    typeof readOnly === 'boolean' &&
    (option === undefined || Number.isSafeInteger(option)) &&
    (temporary === undefined || temporary === true) &&
    (limits === undefined || isDiskLimits(limits))
  );
}
