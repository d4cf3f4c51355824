/**
 * System calls on image files that Node.js does not offer: copies of extents, attributes, leases, files
 * without a name.
 *
 * A copy of extents (FICLONE) makes a file share the blocks of another one. Whoever writes to either file
 * afterwards gets blocks of its own. What the page cache still holds for the source is written out first, by
 * the kernel. The file system must be the same.
 *
 * Sources: ioctl_ficlone(2), ioctl_iflags(2), fcntl(2) (leases), open(2) (O_TMPFILE); linux/fs.h,
 * linux/fiemap.h. Numbers are those of x86-64.
 */

import { open, type FileHandle } from 'node:fs/promises';

import { addressOf, errnoName, libc, type CallResult } from '../../../src/ffi/libc.js';

const SYS_IOCTL = 16;
const SYS_FCNTL = 72;
const SYS_LINKAT = 265;

export const REQUEST = {
  /** _IOW(0x94, 9, int): the argument is the descriptor of the source. */
  ficlone: 0x4004_9409n,
  /** _IOR('f', 1, long); the kernel fills in 32 bits all the same. */
  getFlags: 0x8008_6601n,
  /** _IOW('f', 2, long) */
  setFlags: 0x4008_6602n,
  /** _IOWR('f', 11, struct fiemap), 32 bytes without extents. */
  fiemap: 0xc020_660bn,
} as const;

/** FS_NOCOW_FL: chattr +C of btrfs, which libvirt sets on new storage pools. */
const NOCOW = 0x0080_0000;

const F_SETSIG = 10;
const F_SETLEASE = 1024;
const F_RDLCK = 0;
const F_UNLCK = 2;
/** Says nothing to a process that does not ask for it, unlike SIGIO, which the kernel would send. */
const SIGURG = 23;

const O_TMPFILE = 0o20_200_000;
const O_RDWR = 2;
const AT_FDCWD = -100;
const AT_SYMLINK_FOLLOW = 0x400;

/**
 * Makes an empty file, or the first bytes of another one, the same as `from`. Takes long for a file in many
 * pieces, and cannot be called off.
 * @param from open for reading
 * @param to open for writing. Both stay open until the promise is settled
 * @throws Error with the code of the system: ENOTSUP, EXDEV, EINVAL, ETXTBSY, ENOSPC, EDQUOT, EIO
 */
export async function cloneExtents(from: FileHandle, to: FileHandle): Promise<void> {
  must('FICLONE', await libc().syscallLater(SYS_IOCTL, to.fd, REQUEST.ficlone, from.fd));
}

/** btrfs clones only between files that are alike in this. @param to still empty */
export function copyNoCow(from: FileHandle, to: FileHandle): void {
  const [wanted, now] = [flagsOf(from), flagsOf(to)];
  if ((wanted & NOCOW) === (now & NOCOW)) return;
  const flags = BigUint64Array.of(BigInt(((now & ~NOCOW) | (wanted & NOCOW)) >>> 0));
  must('FS_IOC_SETFLAGS', libc().ioctl(to.fd, REQUEST.setFlags, flags));
}

function flagsOf(file: FileHandle): number {
  const flags = new BigUint64Array(1);
  must('FS_IOC_GETFLAGS', libc().ioctl(file.fd, REQUEST.getFlags, flags));
  return Number(flags[0]! & 0xffff_ffffn);
}

/**
 * Counts the pieces in which the file lies on the disk. Not all of what was written a moment ago is counted.
 */
export async function extentCount(file: FileHandle): Promise<number> {
  // struct fiemap: u64 start, u64 length, u32 flags, u32 mapped_extents (filled in), u32 extent_count (0:
  // only count), u32 reserved.
  const request = new BigUint64Array(4);
  request[1] = 0xffff_ffff_ffff_ffffn;
  must('FIEMAP', await libc().syscallLater(SYS_IOCTL, file.fd, REQUEST.fiemap, addressOf(request)));
  return Number(request[2]! >> 32n);
}

/**
 * Whether anybody has the file open for writing, or mapped: another process, in whatever container, or the
 * kernel for a loop device. A lease for reading is granted only when nobody has.
 * @param file open for reading alone; of this user, unless this is root
 */
export function isOpenForWriting(file: FileHandle): boolean {
  // Until the lease is given back, whoever opens the file for writing has the holder signalled.
  must('F_SETSIG', libc().syscall(SYS_FCNTL, file.fd, F_SETSIG, SIGURG));
  const taken = libc().syscall(SYS_FCNTL, file.fd, F_SETLEASE, F_RDLCK);
  if (taken.value < 0 && errnoName(taken.errno) === 'EAGAIN') return true;
  must('F_SETLEASE', taken);
  must('F_SETLEASE', libc().syscall(SYS_FCNTL, file.fd, F_SETLEASE, F_UNLCK));
  return false;
}

/** A new file in the folder, without a name: it is gone as soon as it is closed. */
export function openUnnamed(folder: string): Promise<FileHandle> {
  return open(folder, O_TMPFILE | O_RDWR, 0o600);
}

/**
 * Gives a file of `openUnnamed` a name in the same file system. @throws Error with code EEXIST when there is
 * a file of that name
 */
export async function giveName(file: FileHandle, path: string): Promise<void> {
  const names = [`/proc/self/fd/${file.fd}`, path].map((name) => Buffer.from(`${name}\0`));
  const [from, to] = names.map((name) => addressOf(name));
  // SAFETY: the kernel reads both on another thread, when nothing here may refer to them any more.
  readByKernel.add(names);
  try {
    const args = [AT_FDCWD, from!, AT_FDCWD, to!, AT_SYMLINK_FOLLOW];
    must('linkat', await libc().syscallLater(SYS_LINKAT, ...args));
  } finally {
    readByKernel.delete(names);
  }
}

const readByKernel = new Set<readonly Uint8Array[]>();

function must(call: string, { value, errno }: CallResult): void {
  if (value >= 0) return;
  const code = errnoName(errno);
  throw Object.assign(new Error(`${call}: ${code}`), { code });
}
