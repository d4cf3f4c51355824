import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { readable, sayOf, wrapped } from '../../../bench/figures.js';
import { HEADLINES } from '../../../bench/headlines.js';
import { writeTables } from '../../../bench/report.js';
import { againstPeer, alone, type BenchRow } from '../../../bench/rows.js';

const MARKED = 'before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n';
const DOCUMENTS = ['README.md', 'docs/performance.md', 'docs/performance-rows.md'];

const lost = alone(
  {
    area: 'slow-down',
    name: 'operations per second lost, a checkpoint every 1 s',
    workload: 'median of 9 workloads',
    unit: '%',
    value: 5.707,
  },
  'at most 5 %',
  (value) => value <= 5,
);
const read = againstPeer({
  area: 'chain',
  name: 'all pages, chain of 1000',
  workload: '512 MiB guest, scattered small writes and runs of 64 KiB',
  unit: 'ms',
  value: 2000,
  peer: 'chain of 1',
  peerValue: 1000,
});
const unpicked = alone({ area: 'memory', name: 'watcher', workload: '1 GiB guest', unit: 'MiB', value: 250 });

describe('the documents that results are written into', () => {
  let root = '';
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'cairn-report-'));
    mkdirSync(join(root, 'docs'));
    for (const name of DOCUMENTS) writeFileSync(join(root, name), MARKED);
  });
  afterEach(() => rmSync(root, { recursive: true }));

  const write = (...sections: readonly (readonly [string, string, BenchRow])[]): void =>
    writeTables(root, {
      machine: { cpu: 'CPU', cores: 2, memoryGib: 1, kernel: '6.1', node: 'v20' },
      date: '2026-01-03',
      commit: 'new',
      measured: sections.map(([section, commit]) => ({
        section,
        commit,
        date: '2026-01-02',
        quick: false,
        rowCount: 1,
      })),
      rows: sections.map(([, , row]) => row),
    });
  const text = (name: string): string => readFileSync(join(root, name), 'utf8');

  it('are changed between their markers only', () => {
    write(['slow-down', 'abc', lost]);
    for (const name of DOCUMENTS) {
      expect(text(name)).toMatch(/^before\n<!-- results:begin -->\n[^]*<!-- results:end -->\nafter\n$/);
      expect(text(name)).not.toContain('old');
    }
  });

  it('show in the README six rows at most, in their order, with misses and with the commit of each', () => {
    expect(HEADLINES.length).toBeLessThanOrEqual(6);
    write(['chain', 'abc', read], ['slow-down', 'def', lost], ['memory', 'def', unpicked]);
    const lines = text('README.md')
      .split('\n')
      .filter((line) => line.startsWith('| '));
    expect(lines.slice(2)).toEqual([
      '| work lost in the guest, a checkpoint each second | 5.71 % |  | at most 5 %: **missed** | 2026-01-02 def |',
      '| reading 512 MiB back, chain of 1000 | 2 s | chain of 1: 1 s |  | 2026-01-02 abc |',
    ]);
  });

  it('hold every row in the list of rows, each area with what it does not show', () => {
    write(['slow-down', 'abc', lost], ['memory', 'abc', unpicked]);
    expect(text('docs/performance-rows.md')).toContain('| watcher | 1 GiB guest | 250 MiB |  |  |  |');
    expect(text('docs/performance-rows.md')).toContain('Each figure is one run without an interval');
  });

  it('leave out what was not measured instead of inventing it', () => {
    write(['slow-down', 'abc', lost]);
    expect(text('docs/performance.md')).not.toMatch(/NaN|undefined|null/);
    expect(text('docs/performance.md')).not.toContain('How long does the guest stand still?');
  });
});

describe('a figure', () => {
  it('has three digits and the unit that needs fewest', () => {
    expect(readable(5.1234, 'ms')).toBe('5.12 ms');
    expect(readable(1174, 'ms')).toBe('1.17 s');
    expect(readable(986_500, 'bytes')).toBe('987 kB');
    expect(readable(3_304_000_000, 'bytes')).toBe('3.3 GB');
    expect(readable(0, 'bytes')).toBe('0 B');
  });
});

describe('a sentence', () => {
  it('is said when all its rows are there', () => {
    expect(sayOf([lost, read], (first, second) => `${first.value} ${second.value}`)).toBe('5.707 2000');
    expect(sayOf([lost, undefined], () => 'said')).toBe('');
  });

  it('is broken between words, and never between a number and its unit', () => {
    const text = wrapped(`${'word '.repeat(21)}99 % more`);
    expect(text.split('\n').every((line) => line.length <= 110)).toBe(true);
    expect(text).toContain('99 %');
  });
});
