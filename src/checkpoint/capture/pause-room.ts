/**
 * The memory into which pages are copied while the VM stands still. It is there before the pause: nothing of
 * it grows in the pause, and nothing is encoded or written there to make room. What does not fit fails the
 * checkpoint.
 */

import { readFileSync } from 'node:fs';

import { CheckpointError } from '../../errors.js';
import type { SharePool } from '../../pool/share-pool.js';
import { countRunPages, PAGE_SIZE_BYTES, type PageRuns } from '../../types.js';

/** Room of each share for pages that are dirtied between the last harvest and the stop. */
export const DEFAULT_ROOM_PAGES = (256 << 20) / PAGE_SIZE_BYTES;
/** Touched beyond what is known to come, so that the kernel has the memory at hand. */
const TOUCHED_MORE = 1.25;
const TOUCHED_MORE_PAGES = 256;
/** More of the host's memory than this part of what is available would have it swap, the guest included. */
const LARGEST_PART = 0.8;

export class PauseRoom {
  readonly #pool: SharePool;
  readonly #leastPages: number;
  #free: number[] = [];

  /** @param leastPages room of each share, however little is known to come */
  constructor(pool: SharePool, leastPages: number) {
    this.#pool = pool;
    this.#leastPages = leastPages;
  }

  /**
   * Before the pause.
   * @param known pages that will have to be copied, as far as is known
   * @throws CAPTURE_FULL
   */
  async reserve(known: PageRuns): Promise<void> {
    await this.#pool.widen(countRunPages(known));
    const counts = this.#pool.split(known).map(countRunPages);
    const touched = counts.map((count) => Math.ceil(count * TOUCHED_MORE) + TOUCHED_MORE_PAGES);
    this.#free = touched.map((count) => Math.max(count, this.#leastPages));
    checkHost(counts.reduce((sum, count) => sum + count, 0));
    await this.#pool.reset();
    await this.#pool.reserve(touched.map((touch, i) => ({ touch, room: this.#free[i]! })));
  }

  /** In the pause. @returns pages copied. @throws CAPTURE_FULL with nothing copied, what the pool throws */
  async capture(runs: PageRuns): Promise<number> {
    const counts = this.#pool.split(runs).map(countRunPages);
    if (counts.some((count, i) => count > this.#free[i]!)) {
      const pages = counts.reduce((sum, count) => sum + count, 0);
      throw full(
        `${pages} pages were written right before the pause, more than there is room for`,
        'the guest writes very fast, or Cairn was held up: try again, or use more --workers',
      );
    }
    counts.forEach((count, i) => (this.#free[i]! -= count));
    return this.#pool.capture(runs);
  }
}

/** A host that has to swap for the copies would have the guest stand still for that long. */
function checkHost(pages: number): void {
  const available = availableBytes();
  if (available === undefined || pages * PAGE_SIZE_BYTES <= available * LARGEST_PART) return;
  throw full(
    `${pages} pages are to be copied in the pause, and the host has memory for ${Math.floor(available / PAGE_SIZE_BYTES)}`,
    'use a dirty tracker (cairn doctor lists them), slow the guest down, or free memory of the host',
  );
}

/** MemAvailable of /proc/meminfo (proc(5)); undefined where there is none. */
function availableBytes(): number | undefined {
  const found = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'latin1'));
  return found === null ? undefined : Number(found[1]) * 1024;
}

function full(why: string, hint: string): CheckpointError {
  return new CheckpointError('CAPTURE_FULL', why, { hint, retryable: true });
}
