/**
 * What is known of the soft-dirty bits of a QEMU process, in files of the runtime folder, so that the next
 * process can take the same record over. It is believed only while the canary is intact.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

import { processFile, writeRuntimeFile, writeRuntimeFileSync } from '../../../../src/host/runtime-file.js';
import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import { MARK_BYTES } from './canary.js';

export interface ArmedRange {
  readonly id: string;
  readonly start: number;
  readonly sizeBytes: number;
}

export interface Arming {
  /** Made anew whenever writes may have gone unseen. */
  readonly token: string;
  /** Mark of the canary, hexadecimal. */
  readonly mark: string;
  readonly canaryAddress: number;
  readonly ranges: readonly ArmedRange[];
}

export function newArming(
  process: QemuProcess,
  canaryAddress: number,
  ranges: readonly ArmedRange[],
): Arming {
  return {
    token: `soft-dirty:${process.pid}:${process.startTime}:${randomBytes(12).toString('hex')}`,
    mark: randomBytes(MARK_BYTES).toString('hex'),
    canaryAddress,
    ranges,
  };
}

export function armingPath(runtimeDir: string, process: QemuProcess): string {
  return processFile(runtimeDir, 'soft-dirty', process);
}

/** Undefined when there is none, it cannot be read, or it is about other memory. */
export async function readArming(path: string, ranges: readonly ArmedRange[]): Promise<Arming | undefined> {
  try {
    const read = JSON.parse(await readFile(path, 'utf8')) as Partial<Arming>;
    const whole =
      typeof read.token === 'string' &&
      typeof read.mark === 'string' &&
      read.mark.length === MARK_BYTES * 2 &&
      Number.isSafeInteger(read.canaryAddress) &&
      JSON.stringify(read.ranges) === JSON.stringify(ranges);
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
  rmSync(statePath(path), { force: true });
}

/** What a process knew when it let go of the tracker. */
export interface LeftState {
  /** Pages that were last reported as absent. */
  readonly absent: DirtyBitmap;
  readonly migrations: string;
}

/**
 * Takes it: the file is gone afterwards. So a process that is killed leaves none, and the next one begins a
 * new record instead of trusting an outdated one.
 */
export function takeState(path: string, token: string, pageSpan: number): LeftState | undefined {
  try {
    const left = JSON.parse(readFileSync(statePath(path), 'utf8')) as {
      token: string;
      absent: number[];
      migrations: string;
    };
    rmSync(statePath(path));
    if (left.token !== token) return undefined;
    return {
      absent: DirtyBitmap.fromRuns(pageSpan, Uint32Array.from(left.absent)),
      migrations: left.migrations,
    };
  } catch {
    rmSync(statePath(path), { force: true });
    return undefined;
  }
}

export function leaveState(path: string, token: string, absent: DirtyBitmap, migrations: string): void {
  try {
    const left = JSON.stringify({ token, absent: [...absent.toRuns()], migrations });
    writeRuntimeFileSync(statePath(path), left);
  } catch {
    // Costs the next process a comparison of all pages.
    rmSync(statePath(path), { force: true });
  }
}

function statePath(path: string): string {
  return `${path}.state`;
}
