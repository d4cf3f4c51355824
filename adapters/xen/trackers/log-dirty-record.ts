/**
 * What must outlive a process so that the next one can go on counting from the same log-dirty bitmap: the
 * token of this arming, and which pages had memory behind them when the bitmap was last read. One small file
 * per domain in the runtime folder.
 *
 * Written synchronously inside `collect`, and only when something changed. A process that dies between
 * reading the bitmap and writing this leaves the ledger at "owed", which makes the next checkpoint compare
 * all pages.
 */

import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import { writeRuntimeFileSync } from '../../../src/host/runtime-file.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';

export interface LogDirtyRecord {
  readonly token: string;
  /** Undefined when the memory regions were others then. */
  readonly present: DirtyBitmap | undefined;
}

interface Stored {
  readonly token: string;
  readonly regions: string;
  /** Page runs, base64 of little-endian u32 pairs. */
  readonly present: string;
}

export function recordPath(runtimeDir: string, instance: string): string {
  return join(runtimeDir, `xen-logdirty-${instance.replace(/[^A-Za-z0-9.-]/g, '_')}.json`);
}

/** Undefined when there is none, or it cannot be read. */
export function readRecord(path: string, layout: MemoryLayout): LogDirtyRecord | undefined {
  try {
    const stored = JSON.parse(readFileSync(path, 'utf8')) as Partial<Stored>;
    if (typeof stored.token !== 'string' || typeof stored.present !== 'string') return undefined;
    if (stored.regions !== regionsKey(layout)) return { token: stored.token, present: undefined };
    const bytes = Uint8Array.from(Buffer.from(stored.present, 'base64'));
    const present = DirtyBitmap.fromRuns(layout.pageSpan, new Uint32Array(bytes.buffer));
    return { token: stored.token, present };
  } catch {
    return undefined;
  }
}

/** @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO */
export function writeRecord(path: string, layout: MemoryLayout, token: string, present: DirtyBitmap): void {
  const runs = present.toRuns();
  const stored: Stored = {
    token,
    regions: regionsKey(layout),
    present: Buffer.from(runs.buffer, runs.byteOffset, runs.byteLength).toString('base64'),
  };
  writeRuntimeFileSync(path, JSON.stringify(stored));
}

export function removeRecord(path: string): void {
  rmSync(path, { force: true });
}

function regionsKey(layout: MemoryLayout): string {
  return layout.regions.map(({ id, pageCount }) => `${id}:${pageCount}`).join(' ');
}
