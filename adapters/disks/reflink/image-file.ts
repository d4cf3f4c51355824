/**
 * Whether an image is one that can be cloned: a raw or qcow2 file on a file system with reflinks, which the
 * VM writes to. Looks only; the file system is tried with two files without names beside the image.
 */

import { open, realpath, stat, statfs, type FileHandle } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

import { describeError, systemErrorCode } from '../../../src/errors.js';
import type { VmDisk } from '../../../src/hypervisor/disks.js';
import { cloneExtents, copyNoCow, extentCount, isOpenForWriting, openUnnamed } from './file-calls.js';

/** An image that can be cloned. */
export interface ImageFile {
  /** Without symbolic links. */
  readonly path: string;
  readonly format: string;
}

export type ImageAnswer = ImageFile | { readonly whyNot: string };

/**
 * File systems that this was tested with: their magic numbers (linux/magic.h), and what one piece of a file
 * costs in a clone.
 */
const FILE_SYSTEMS = new Map([
  [0x9123_683e, { name: 'btrfs', msPerExtent: 0.025 }],
  [0x5846_5342, { name: 'XFS', msPerExtent: 0.06 }],
]);
const PROBE_BYTES = 65_536;
/** `json:{...}`, `nbd://host/export`: what a hypervisor writes for something else than a file. */
const NO_FILE = /^[A-Za-z][A-Za-z0-9+.-]*:/;
const FORMATS = ['raw', 'qcow2'];

/** Header of a qcow2 image (docs/interop/qcow2.txt of QEMU), big-endian. */
const QCOW2 = { magic: 0x5146_49fb, versionAt: 4, featuresAt: 72, headerBytes: 80, externalDataBit: 4n };

/**
 * @param maxPauseMs how long the clone may take
 * @returns undefined for a disk of another kind
 */
export async function imageFileOf(
  disk: VmDisk,
  cwd: string,
  maxPauseMs: number,
): Promise<ImageAnswer | undefined> {
  if (!disk.writable || !FORMATS.includes(disk.format) || NO_FILE.test(disk.path)) return undefined;
  const path = await realpath(resolve(cwd, disk.path)).catch(() => undefined);
  if (path === undefined || !(await stat(path)).isFile()) return undefined;
  try {
    const whyNot = await obstacle(path, disk.format, maxPauseMs);
    return whyNot === '' ? { path, format: disk.format } : { whyNot };
  } catch (error) {
    if (systemErrorCode(error) === undefined) throw error;
    return { whyNot: `whether it can be cloned cannot be told: ${describeError(error)}` };
  }
}

/** @returns why the image cannot be cloned, empty when it can */
async function obstacle(path: string, format: string, maxPauseMs: number): Promise<string> {
  const fileSystem = FILE_SYSTEMS.get((await statfs(path)).type);
  if (fileSystem === undefined)
    return 'it is a file, and its file system is neither btrfs nor XFS, of which cairn takes clones';
  const image = await open(path, 'r');
  try {
    if (!isOpenForWriting(image))
      return 'nobody has that file open for writing, so the VM writes to another one';
    if (format === 'qcow2' && (await hasExternalData(image))) return 'its data lies in another file';
    const whyNot = await whyNoClones(image, path);
    if (whyNot !== '') return whyNot;
    const pieces = await extentCount(image);
    const expectedMs = pieces * fileSystem.msPerExtent;
    return expectedMs <= maxPauseMs
      ? ''
      : `it lies in ${pieces} pieces, and to clone them the VM would stand still for about ${Math.round(expectedMs / 100) / 10} s`;
  } finally {
    await image.close();
  }
}

/** Tried with a little data, and with the image's attributes. */
async function whyNoClones(image: FileHandle, path: string): Promise<string> {
  const folder = dirname(path);
  if ((await stat(folder)).dev !== (await image.stat()).dev) return 'it is mounted from another file system';
  const [from, to] = [await openUnnamed(folder), await openUnnamed(folder)];
  try {
    copyNoCow(image, from);
    await from.write(Buffer.alloc(PROBE_BYTES, 1));
    copyNoCow(image, to);
    await cloneExtents(from, to);
    return '';
  } catch (error) {
    // EOPNOTSUPP has the same number.
    if (systemErrorCode(error) === 'ENOTSUP') return 'its file system was made without reflinks';
    throw error;
  } finally {
    await from.close();
    await to.close();
  }
}

async function hasExternalData(image: FileHandle): Promise<boolean> {
  const header = Buffer.alloc(QCOW2.headerBytes);
  const { bytesRead } = await image.read(header, 0, header.length, 0);
  if (bytesRead < header.length || header.readUInt32BE(0) !== QCOW2.magic) return true;
  return (
    header.readUInt32BE(QCOW2.versionAt) >= 3 &&
    (header.readBigUInt64BE(QCOW2.featuresAt) & QCOW2.externalDataBit) !== 0n
  );
}
