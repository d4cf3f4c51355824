/**
 * Block devices of ZFS volumes: which volume one is, and who has it open. The kernel module answers for the
 * name, so that no link of udev is needed.
 *
 * Sources: include/sys/fs/zfs.h of OpenZFS (BLKZNAME), linux/fs.h (BLKFLSBUF). Numbers are those of x86-64.
 */

import { constants } from 'node:fs';
import { open, readdir, readFile, realpath, stat } from 'node:fs/promises';

import { systemErrorCode } from '../../../src/errors.js';
import { libc } from '../../../src/ffi/libc.js';

/** _IOR(0x12, 125, char[256]) */
const BLKZNAME = 0x8100_127dn;
const NAME_BYTES = 256;
/** _IO(0x12, 97): writes out and forgets what the page cache holds for the device. */
const BLKFLSBUF = 0x1261n;
/** A whole volume; a partition of one (zd0p1) is not rolled back alone. */
const ZVOL = /^\/dev\/zd\d+$/;

/**
 * @returns `POOL/VOLUME`, of a snapshot's device with `@SNAPSHOT`; undefined for anything but the device of a
 * whole volume
 */
export async function volumeNameOf(path: string): Promise<string | undefined> {
  const device = await realpath(path).catch(() => '');
  if (!ZVOL.test(device)) return undefined;
  const file = await open(device, 'r');
  try {
    const name = Buffer.alloc(NAME_BYTES);
    if (libc().ioctl(file.fd, BLKZNAME, name).value < 0) return undefined;
    return name.toString('utf8', 0, Math.max(0, name.indexOf(0)));
  } finally {
    await file.close();
  }
}

/** What a QEMU with cache=unsafe has not written out. */
export async function flushDevice(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
}

/** After a rollback, which the page cache has no notice of. */
export async function forgetCachedPages(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    libc().ioctl(file.fd, BLKFLSBUF, Buffer.alloc(8));
  } finally {
    await file.close();
  }
}

/** Says in words who has the device open; undefined when nobody has. Needs root, as ZFS does. */
export async function userOf(path: string): Promise<string | undefined> {
  const { rdev } = await stat(path);
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    // Processes and descriptors come and go meanwhile.
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const target = await stat(`/proc/${pid}/fd/${fd}`).catch(() => undefined);
      if (target?.isBlockDevice() !== true || target.rdev !== rdev) continue;
      const name = (await readFile(`/proc/${pid}/comm`, 'latin1').catch(() => '')).trim();
      return `${name || 'a process'} (${pid})`;
    }
  }
  return (await isClaimed(path)) ? 'the kernel (a mount, device-mapper, a loop device)' : undefined;
}

async function isClaimed(path: string): Promise<boolean> {
  try {
    await (await open(path, constants.O_RDONLY | constants.O_EXCL)).close();
    return false;
  } catch (error) {
    if (systemErrorCode(error) === 'EBUSY') return true;
    throw error;
  }
}
