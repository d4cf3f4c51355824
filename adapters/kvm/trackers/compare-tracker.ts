/**
 * The tracker that is always right: it takes every page for dirty, and the engine compares them all with what
 * the repository has. For kernels without PAGEMAP_SCAN and for VMs whose writes escape it.
 *
 * Pages without memory behind them are left out where that is certain: of private anonymous memory by
 * /proc/PID/pagemap, of shared memory by the holes of its file.
 */

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../../src/errors.js';
import {
  COMPARES_ALL,
  type DirtyTracker,
  type Harvest,
  type TrackerReport,
} from '../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { FileHoles } from '../memory/file-holes.js';
import { checkStillMapped } from '../memory/mapped-blocks.js';
import { visitUnpopulated } from '../memory/pagemap.js';
import { kernelObstacle } from './pagemap-scan/support.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { mayReadMemory } from '../memory/process-access.js';
import type { RamBlock } from '../memory/ram-blocks.js';

export const COMPARE_KIND = 'compare';

export function compareReport(pid: number): TrackerReport {
  if (!mayReadMemory(pid)) {
    return {
      kind: COMPARE_KIND,
      usable: false,
      reason: `no permission to read the memory of process ${pid}`,
      remedy: 'run as root or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope',
    };
  }
  return {
    kind: COMPARE_KIND,
    usable: true,
    immuneTo: 'all',
    reason:
      'reads and compares all pages while the VM is paused: always right, but the pause grows with the memory',
  };
}

export interface CompareOptions {
  readonly process: QemuProcess;
  readonly layout: MemoryLayout;
  readonly blocks: readonly RamBlock[];
}

interface Started {
  /** Undefined when it cannot be opened: then no page is known to be absent. */
  readonly pagemap: number | undefined;
  readonly canScan: boolean;
  readonly holes: readonly (FileHoles | undefined)[];
  readonly token: string;
}

export class CompareTracker implements DirtyTracker {
  readonly kind = COMPARE_KIND;
  readonly traits = COMPARES_ALL;
  readonly #options: CompareOptions;
  #started: Started | undefined;

  constructor(options: CompareOptions) {
    this.#options = options;
  }

  get token(): string {
    return this.#on().token;
  }

  start(): Promise<void> {
    const { process, blocks } = this.#options;
    this.#started ??= {
      pagemap: openQuietly(`/proc/${process.pid}/pagemap`),
      canScan: kernelObstacle() === undefined,
      holes: blocks.map((block) => FileHoles.open(process.pid, block)),
      // Nothing is remembered from one start to the next, so no two have the same token.
      token: `${COMPARE_KIND}:${process.pid}:${process.startTime}:${randomBytes(12).toString('hex')}`,
    };
    return Promise.resolve();
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  collect(): Harvest {
    const { pagemap, canScan, holes } = this.#on();
    const { process, layout, blocks } = this.#options;
    const dirty = new DirtyBitmap(layout.pageSpan);
    const absent = new DirtyBitmap(layout.pageSpan);
    // All pages of a block that is gone look absent.
    checkStillMapped(process.pid, canScan ? pagemap : undefined, blocks);
    layout.regions.forEach((region, i) => {
      dirty.setRange(region.firstPage, region.pageCount);
      const { host, backing, sizeBytes } = blocks[i]!;
      const mark = (from: number, to: number): void => {
        absent.setRange(region.firstPage + from / PAGE_SIZE_BYTES, (to - from) / PAGE_SIZE_BYTES);
      };
      holes[i]?.visit(0, sizeBytes, mark);
      if (backing !== 'anonymous' || pagemap === undefined) return;
      const markAddress = (start: number, end: number): void => mark(start - host, end - host);
      if (canScan) visitUnpopulated(pagemap, host, host + sizeBytes, markAddress);
      else visitUnpopulatedByEntry(pagemap, host, host + sizeBytes, markAddress);
    });
    return { dirty, absent };
  }

  /** Nothing to keep: the next collect reports all pages. */
  putBack(): void {
    this.#on();
  }

  stop(): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  close(): void {
    const started = this.#started;
    this.#started = undefined;
    if (started === undefined) return;
    if (started.pagemap !== undefined) closeSync(started.pagemap);
    for (const holes of started.holes) holes?.close();
  }

  #on(): Started {
    if (this.#started === undefined)
      throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
    return this.#started;
  }
}

/**
 * Bits 63 (present) and 62 (swapped) of an entry of /proc/PID/pagemap
 * (Documentation/admin-guide/mm/pagemap.rst), high half.
 */
const POPULATED = 0xc000_0000;
const ENTRIES_PER_READ = 64 * 1024;

/** Finds unpopulated pages on kernels without PAGEMAP_SCAN: 8 bytes a page are read and looked at. */
function visitUnpopulatedByEntry(
  pagemap: number,
  start: number,
  end: number,
  visit: (start: number, end: number) => void,
): void {
  const entries = new Uint32Array(ENTRIES_PER_READ * 2);
  for (let at = start; at < end;) {
    const wanted = Math.min(ENTRIES_PER_READ, (end - at) / PAGE_SIZE_BYTES) * 8;
    const got = readSync(pagemap, entries, 0, wanted, (at / PAGE_SIZE_BYTES) * 8);
    const count = Math.floor(got / 8);
    if (count === 0) return;
    let from = -1;
    for (let i = 0; i <= count; i++) {
      const empty = i < count && (entries[i * 2 + 1]! & POPULATED) === 0;
      if (empty && from < 0) from = i;
      if (!empty && from >= 0) {
        visit(at + from * PAGE_SIZE_BYTES, at + i * PAGE_SIZE_BYTES);
        from = -1;
      }
    }
    at += count * PAGE_SIZE_BYTES;
  }
}

function openQuietly(path: string): number | undefined {
  try {
    return openSync(path, 'r');
  } catch {
    return undefined;
  }
}
