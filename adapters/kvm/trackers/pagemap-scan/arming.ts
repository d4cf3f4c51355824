/**
 * What is known of the userfaultfd that tracks a QEMU process: kept in a file of the runtime folder, so that
 * the next process takes the same uninterrupted record over, and checked against /proc before it is believed.
 *
 * A userfaultfd has an inode of its own: descriptor number and inode together name one, as long as the
 * process lives.
 */

import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

import { processFile, writeRuntimeFile } from '../../../../src/host/runtime-file.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import { FEATURE_WP_ASYNC } from './userfaultfd.js';

export interface TrackedRange {
  readonly id: string;
  readonly start: number;
  readonly sizeBytes: number;
}

export interface Arming {
  /** Number in QEMU. */
  readonly descriptor: number;
  readonly inode: number;
  /** Made anew whenever writes may have gone unseen. */
  readonly token: string;
  readonly ranges: readonly TrackedRange[];
}

export interface RemoteDescriptor {
  readonly descriptor: number;
  readonly inode: number;
}

/** A userfaultfd of a process, as /proc shows it. */
interface Userfaultfd extends RemoteDescriptor {
  /** 0 until somebody has chosen them: until then it does nothing at all. */
  readonly features: bigint;
}

export function newToken(process: QemuProcess): string {
  return `pagemap-scan:${process.pid}:${process.startTime}:${randomBytes(12).toString('hex')}`;
}

export function armingPath(runtimeDir: string, process: QemuProcess): string {
  return processFile(runtimeDir, 'uffd', process);
}

/** Undefined when there is none, or it cannot be read. */
export async function readArming(path: string): Promise<Arming | undefined> {
  try {
    const read = JSON.parse(await readFile(path, 'utf8')) as Partial<Arming>;
    const whole =
      Number.isInteger(read.descriptor) &&
      Number.isInteger(read.inode) &&
      typeof read.token === 'string' &&
      Array.isArray(read.ranges);
    return whole ? (read as Arming) : undefined;
  } catch {
    return undefined;
  }
}

/** @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO */
export function writeArming(path: string, arming: Arming): Promise<void> {
  return writeRuntimeFile(path, JSON.stringify(arming));
}

export function removeArming(path: string): void {
  rmSync(path, { force: true });
}

/**
 * The userfaultfds of a process that write-protect asynchronously. QEMU's own, for postcopy and background
 * snapshots, do not: they wait for each fault.
 */
export function writeTrackingDescriptors(pid: number): readonly RemoteDescriptor[] {
  return userfaultfds(pid).filter(({ features }) => (features & FEATURE_WP_ASYNC) !== 0n);
}

/**
 * Userfaultfds that nobody has chosen features for: what a Cairn leaves that dies right after it had QEMU
 * open one. QEMU chooses those of its own at once, so one that stays like this for a while is nobody's.
 */
export function unusedDescriptors(pid: number): readonly RemoteDescriptor[] {
  return userfaultfds(pid).filter(({ features }) => features === 0n);
}

function userfaultfds(pid: number): readonly Userfaultfd[] {
  let names: readonly string[];
  try {
    names = readdirSync(`/proc/${pid}/fd`);
  } catch {
    return [];
  }
  return names.flatMap((name) => describe(pid, Number(name)) ?? []);
}

/** Undefined when the descriptor is not a userfaultfd. */
export function describe(pid: number, descriptor: number): Userfaultfd | undefined {
  try {
    const path = `/proc/${pid}/fd/${descriptor}`;
    if (readlinkSync(path) !== 'anon_inode:[userfaultfd]') return undefined;
    // "API:  aa:FEATURES:..." in hexadecimal.
    const features = /^API:\s*[0-9a-f]+:([0-9a-f]+)/m.exec(
      readFileSync(`/proc/${pid}/fdinfo/${descriptor}`, 'latin1'),
    )?.[1];
    if (features === undefined) return undefined;
    return { descriptor, inode: statSync(path).ino, features: BigInt(`0x${features}`) };
  } catch {
    return undefined;
  }
}

/** Undefined when the process has no such descriptor. */
export function inodeOf(pid: number, descriptor: number): number | undefined {
  try {
    return statSync(`/proc/${pid}/fd/${descriptor}`).ino;
  } catch {
    return undefined;
  }
}
