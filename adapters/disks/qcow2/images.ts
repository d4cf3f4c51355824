/** What both drivers of qcow2 images ask of a disk and of an image. */

import { readFile, stat } from 'node:fs/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { VmDisk } from '../../../src/hypervisor/disks.js';

/** The same disk; the mode is added to one that the VM writes to in a qcow2 image. */
export function withMode(disk: VmDisk, mode: string): VmDisk {
  if (disk.format !== 'qcow2' || !disk.writable) return disk;
  return { ...disk, snapshotModes: [...disk.snapshotModes, mode] };
}

export function nobodyTakes(mode: string): CheckpointError {
  return new CheckpointError('DISK_SNAPSHOT_FAILED', `this hypervisor takes no ${mode} snapshots of images`, {
    hint: 'snapshot the disk with --hook, or leave it alone with --memory-only',
  });
}

/** @throws RESTORE_TARGET_BUSY */
export async function refuseOpenForWriting(path: string): Promise<void> {
  if (!(await isOpenForWriting(path))) return;
  throw new CheckpointError('RESTORE_TARGET_BUSY', `a running QEMU has the disk ${path} open for writing`, {
    hint: 'stop the VM or the job that writes to this disk first',
    detail: { path },
  });
}

/**
 * QEMU locks byte 100+n of an image for each permission that it uses and 200+n for each that it does not
 * share; n = 1 is writing (block/file-posix.c). /proc/locks: `1: OFDLCK ADVISORY READ -1 fe:00:4711 201 201`.
 */
const WRITE_LOCK_BYTES = new Set(['101', '201']);

async function isOpenForWriting(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  // Whoever needs the image finds out that it is gone.
  if (found === undefined) return false;
  const { dev, ino } = found;
  const major = ((dev >>> 8) & 0xfff).toString(16).padStart(2, '0');
  const minor = ((dev & 0xff) | ((dev >>> 12) & 0xfff00)).toString(16).padStart(2, '0');
  const lines = (await readFile('/proc/locks', 'utf8').catch(() => '')).split('\n');
  return lines.some((line) => {
    const fields = line.trim().split(/\s+/);
    return fields.includes(`${major}:${minor}:${ino}`) && WRITE_LOCK_BYTES.has(fields.at(-2) ?? '');
  });
}
