import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { RecordedEpoch } from '../../src/study/trace/recorder.js';
import { BLOCK_HEADER_BYTES, MAX_BLOCK_PAGES, type TraceHeader } from '../../src/study/trace/trace-format.js';
import { TraceReader } from '../../src/study/trace/trace-reader.js';
import { TraceWriter } from '../../bench/trace/trace-writer.js';
import { SOURCE_ROOT } from '../lab/support/lab-files.js';

const HEADER: TraceHeader = {
  workload: 'test',
  description: 'made by a test',
  epochMs: 200,
  layout: layOut([
    { id: 'pc.ram', sizeBytes: 64 << 20 },
    { id: 'vga.vram', sizeBytes: 1 << 20 },
  ]),
  hypervisor: 'kvm',
  machineType: 'pc-i440fx-7.2',
  tracker: 'pagemap-scan',
  recorded: '2026-11-23T00:00:00.000Z',
};

let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-trace-test-'));
  path = join(dir, 'a.trace');
});
afterEach(() => rmSync(dir, { recursive: true }));

function filled(...values: number[]): Uint8Array {
  return Buffer.concat(values.map((value) => Buffer.alloc(4096, value)));
}

function write(epochs: readonly RecordedEpoch[]): void {
  const writer = new TraceWriter(path, HEADER, 1);
  for (const epoch of epochs) writer.append(epoch);
  writer.close();
}

function readAll(from = path): RecordedEpoch[] {
  const reader = TraceReader.open(from);
  try {
    return [...reader.epochs()].map(({ runMs, pages, contentPages, before, after }) => {
      const kept = new Set(contentPages);
      return {
        runMs,
        pages,
        hasContent: Uint8Array.from(pages, (page) => (kept.has(page) ? 1 : 0)),
        before,
        after,
      };
    });
  } finally {
    reader.close();
  }
}

function plain(epochs: readonly RecordedEpoch[]): unknown {
  return epochs.map(({ runMs, pages, hasContent, before, after }) => ({
    runMs,
    pages: [...pages],
    hasContent: [...hasContent],
    before: Buffer.from(before).toString('base64'),
    after: Buffer.from(after).toString('base64'),
  }));
}

/** Page 3 new, then changed; page 9 without contents in between; an epoch in which nothing happened. */
const STORY: readonly RecordedEpoch[] = [
  {
    runMs: 200.5,
    pages: Uint32Array.of(3, 9),
    hasContent: Uint8Array.of(1, 1),
    before: filled(0, 7),
    after: filled(1, 8),
  },
  { runMs: 201, pages: Uint32Array.of(9), hasContent: Uint8Array.of(0), before: filled(), after: filled() },
  { runMs: 200, pages: Uint32Array.of(), hasContent: Uint8Array.of(), before: filled(), after: filled() },
  {
    runMs: 202,
    pages: Uint32Array.of(3, 9, 16383),
    hasContent: Uint8Array.of(1, 1, 1),
    before: filled(1, 5, 0),
    after: filled(2, 6, 0),
  },
];

describe('a trace', () => {
  it('gives back every epoch as it was recorded, and its header', () => {
    write(STORY);
    expect(plain(readAll())).toEqual(plain(STORY));
    const reader = TraceReader.open(path);
    expect(reader.header).toEqual(HEADER);
    reader.close();
  });

  it('can be read again from the start', () => {
    write(STORY);
    const reader = TraceReader.open(path);
    expect([...reader.epochs()].length).toBe(4);
    expect([...reader.epochs()].length).toBe(4);
    reader.close();
  });

  it('joins the blocks of a large epoch', () => {
    const count = MAX_BLOCK_PAGES * 2 + 5;
    const pages = Uint32Array.from({ length: count }, (_, i) => i * 2);
    const before = new Uint8Array(count * 4096);
    const after = before.slice();
    for (let i = 0; i < count; i++) after[i * 4096 + (i % 4096)] = 1 + (i % 255);
    const epoch = { runMs: 2000, pages, hasContent: new Uint8Array(count).fill(1), before, after };
    write([epoch, STORY[2]!]);
    const [large, none] = readAll();
    expect(large!.pages).toEqual(pages);
    expect(Buffer.compare(large!.after, after)).toBe(0);
    expect(none!.pages.length).toBe(0);
  });

  it('is there only once it is whole', () => {
    const writer = new TraceWriter(path, HEADER);
    writer.append(STORY[0]!);
    expect(readdirSync(dir)).toEqual(['a.trace~']);
    writer.abort();
    expect(readdirSync(dir)).toEqual([]);
  });

  it('refuses an epoch whose parts do not fit together', () => {
    const writer = new TraceWriter(path, HEADER);
    expect(() => writer.append({ ...STORY[0]!, after: filled(1) })).toThrow(RangeError);
    expect(() => writer.append({ ...STORY[0]!, pages: Uint32Array.of(9, 3) })).toThrow(RangeError);
    writer.abort();
  });

  it('refuses a file that was cut anywhere', () => {
    write(STORY);
    const whole = readFileSync(path);
    for (const length of [0, 20, 60, whole.length - BLOCK_HEADER_BYTES, whole.length - 1]) {
      writeFileSync(path, whole.subarray(0, length));
      expect(() => readAll()).toThrow(expect.objectContaining({ code: 'TRACE_MALFORMED' }));
    }
  });

  it('refuses a file with any byte changed, or reads exactly the same', () => {
    write(STORY);
    const whole = readFileSync(path);
    const right = plain(STORY);
    for (let at = 0; at < whole.length; at++) {
      const damaged = Buffer.from(whole);
      damaged[at]! ^= 0x41;
      writeFileSync(path, damaged);
      let outcome: unknown;
      try {
        outcome = plain(readAll());
      } catch (error) {
        expect(error).toEqual(expect.objectContaining({ code: 'TRACE_MALFORMED' }));
        continue;
      }
      expect(outcome).toEqual(right);
    }
  });
});

describe('the committed samples', () => {
  const samples = join(SOURCE_ROOT, 'bench/trace/samples');
  it.each(readdirSync(samples))('%s has epochs with contents, each continuing the one before', (name) => {
    const latest = new Map<number, Buffer>();
    const reader = TraceReader.open(join(samples, name));
    let contents = 0;
    for (const epoch of reader.epochs()) {
      expect(epoch.runMs).toBeGreaterThanOrEqual(reader.header.epochMs);
      epoch.contentPages.forEach((page, i) => {
        const before = Buffer.from(epoch.before.subarray(i * 4096, (i + 1) * 4096));
        expect(latest.get(page)?.equals(before) ?? true).toBe(true);
        latest.set(page, Buffer.from(epoch.after.subarray(i * 4096, (i + 1) * 4096)));
        contents++;
      });
    }
    reader.close();
    expect(contents).toBeGreaterThan(50);
  });
});
