/** What both drivers of qcow2 images ask of a disk and of an image. */

import { readFile, stat } from 'node:fs/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { VmDisk } from '../../../src/hypervisor/disks.js';
import { isLocalPath, isTemporaryImage } from '../../qemu/image-names.js';

/** Nodes between a device and its image: those of jobs come and go (BlockdevDriver of qapi/block-core.json). */
const FILTERS: ReadonlySet<string> = new Set([
  ...['mirror_top', 'commit_top', 'copy-before-write', 'copy-on-read', 'throttle', 'compress', 'preallocate'],
  ...['blkdebug', 'blklogwrites', 'blkreplay', 'replication', 'snapshot-access'],
]);

function filtered(format: string): string {
  const remedy =
    format === 'throttle'
      ? 'limits may be given by throttling.* of -drive, or by block_set_io_throttle, without one'
      : 'that of a job is gone when the job ends';
  return `QEMU's filter ${format} lies above its image: ${remedy}`;
}

/** The same disk; the mode is added to one that the VM writes to in a qcow2 image of this host. */
export function withMode(disk: VmDisk, mode: string): VmDisk {
  if (disk.writable && FILTERS.has(disk.format)) return { ...disk, whyNoSnapshot: filtered(disk.format) };
  if (disk.format !== 'qcow2' || !disk.writable) return disk;
  const whyNoSnapshot = obstacleOf(disk);
  if (whyNoSnapshot !== undefined) return { ...disk, whyNoSnapshot };
  return { ...disk, snapshotModes: [...disk.snapshotModes, mode] };
}

function obstacleOf({ path, isEncrypted }: VmDisk): string | undefined {
  // An overlay of QEMU's would hold in the clear what the guest writes, and qemu-img has no key to roll back with.
  if (isEncrypted === true) return 'its image is encrypted (LUKS), and a snapshot of it would not be';
  if (isTemporaryImage(path))
    return 'the guest writes to a temporary image (-snapshot), which ends with its QEMU';
  // What is behind another name cannot grow, or not be reached by qemu-img later.
  return isLocalPath(path) ? undefined : 'its image is no file of this host';
}

export function nobodyTakes(mode: string): CheckpointError {
  return new CheckpointError('DISK_SNAPSHOT_FAILED', `this hypervisor takes no ${mode} snapshots of images`, {
    hint: 'snapshot the disk with --hook, or leave it alone with --memory-only',
  });
}

/**
 * @param readersToo refuses, too, while somebody only reads the image and wants nobody to write to it: a QEMU that has it
 *   below an overlay. Whoever is going to write to it asks for that
 * @throws RESTORE_TARGET_BUSY
 */
export async function refuseOpenForWriting(path: string, readersToo = false): Promise<void> {
  const isBusy = (await isLocked(path, WRITING)) || (readersToo && (await isLocked(path, NO_OTHER_WRITER)));
  if (!isBusy) return;
  throw new CheckpointError('RESTORE_TARGET_BUSY', `a running QEMU has the disk ${path} open for writing`, {
    hint: 'stop the VM or the job that writes to this disk first',
    detail: { path },
  });
}

/**
 * QEMU locks byte 100+n of an image for each permission that it uses and 200+n for each that it does not share; n = 1 is
 * writing (block/file-posix.c). Neighbouring bytes of one holder are one line of /proc/locks, which ends with the first
 * and the last: `1: OFDLCK ADVISORY READ -1 fe:00:4711 100 101`.
 */
const WRITING = 101;
const NO_OTHER_WRITER = 201;

async function isLocked(path: string, byte: number): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  // Whoever needs the image finds out that it is gone.
  if (found === undefined) return false;
  const { dev, ino } = found;
  const major = ((dev >>> 8) & 0xfff).toString(16).padStart(2, '0');
  const minor = ((dev & 0xff) | ((dev >>> 12) & 0xfff00)).toString(16).padStart(2, '0');
  const lines = (await readFile('/proc/locks', 'utf8').catch(() => '')).split('\n');
  return lines.some((line) => {
    const fields = line.trim().split(/\s+/);
    if (!fields.includes(`${major}:${minor}:${ino}`)) return false;
    const [first, last] = [Number(fields.at(-2)), fields.at(-1) === 'EOF' ? Infinity : Number(fields.at(-1))];
    return first <= byte && byte <= last;
  });
}
