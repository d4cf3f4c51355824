/** Looking for written pages on several threads, in real memory of a process that the kernel tracks. */

import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { scanWritten, writtenSpans, type Span } from '../../adapters/kvm/memory/pagemap.js';
import { SpanFinder } from '../../adapters/kvm/trackers/pagemap-scan/span-finder.js';
import { pagemapScanReport } from '../../adapters/kvm/trackers/pagemap-scan/support.js';
import {
  enableWriteTracking,
  registerRange,
  SYS_USERFAULTFD,
  USERFAULTFD_FLAGS,
} from '../../adapters/kvm/trackers/pagemap-scan/userfaultfd.js';
import { addressOf, libc } from '../../src/ffi/libc.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';

const SIZE_BYTES = 64 << 20;
const PAGE_COUNT = SIZE_BYTES / PAGE_SIZE_BYTES;

let memory: Buffer;
let start: number;
let pagemap: number;
let tracker: number;
let finder: SpanFinder;
beforeEach(async () => {
  finder = new SpanFinder({ sizeBytes: SIZE_BYTES, threads: 2 });
  pagemap = openSync('/proc/self/pagemap', 'r');
  memory = Buffer.alloc(SIZE_BYTES + PAGE_SIZE_BYTES, 1);
  start = Math.ceil(Number(addressOf(memory)) / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
  tracker = libc().syscall(SYS_USERFAULTFD, USERFAULTFD_FLAGS).value;
  for (let i = 0; i < 500 && finder.readyThreads < 2; i++) await sleep(20);
});
afterEach(() => {
  finder.close();
  closeSync(pagemap);
  if (tracker >= 0) closeSync(tracker);
});

/** False, with a word on the console, where the kernel cannot track. */
function isTracking(): boolean {
  const { usable, reason } = pagemapScanReport(process.pid);
  if (!usable || tracker < 0) {
    console.warn(`skipped: ${usable ? 'no userfaultfd here' : reason}`);
    return false;
  }
  expect(enableWriteTracking(tracker)).toBe('');
  expect(registerRange(tracker, start, SIZE_BYTES)).toBe('');
  return true;
}

function find(): readonly Span[] {
  return finder.find(pagemap, start, start + SIZE_BYTES);
}

describe('a finder with two threads', () => {
  it('finds every page that was written and none that one thread would not, in order, each time it is asked', () => {
    expect(finder.readyThreads).toBe(2);
    if (!isTracking()) return;
    for (let round = 0; round < 20; round++) {
      scanWritten(pagemap, [[start, start + SIZE_BYTES]], true, () => undefined);
      const pages = Array.from({ length: 12 }, (_, i) => (round * 977 + i * i * 131) % PAGE_COUNT);
      for (const page of pages) memory[start - Number(addressOf(memory)) + page * PAGE_SIZE_BYTES] = round;
      const found = find();
      const foundPages = pagesOf(found);
      expect(pages.filter((page) => !foundPages.has(page))).toEqual([]);
      const alone = pagesOf(writtenSpans(pagemap, start, start + SIZE_BYTES));
      expect([...foundPages].filter((page) => !alone.has(page))).toEqual([]);
      expect([...found].sort(([a], [b]) => a - b)).toEqual(found);
      expect(finder.readyThreads).toBe(2);
    }
  });

  it('fails as one thread does when a part is not tracked, and can be asked again', () => {
    // Not registered at all.
    expect(() => find()).toThrow(expect.objectContaining({ code: 'TRACKER_OFF' }));
    expect(finder.readyThreads).toBe(2);
  });

  it('looks at everything itself once its threads are gone', () => {
    if (!isTracking()) return;
    finder.close();
    expect(finder.readyThreads).toBe(0);
    expect(find()).toEqual(writtenSpans(pagemap, start, start + SIZE_BYTES));
  });
});

function pagesOf(spans: readonly Span[]): Set<number> {
  const pages = new Set<number>();
  for (const [from, to] of spans)
    for (let at = from; at < to; at += PAGE_SIZE_BYTES) pages.add((at - start) / PAGE_SIZE_BYTES);
  return pages;
}
