import { describe, it, expect } from '@jest/globals';

import { keepOlder, measurementsOf, type Measurement } from '../../../bench/results.js';
import { alone, type BenchArea, type BenchRow } from '../../../bench/rows.js';

const SECTIONS = ['scan', 'pause', 'pause-peers'];

function row(area: BenchArea, name: string): BenchRow {
  return alone({ area, name, workload: '', unit: 'ms', value: 1 });
}

function measurement(section: string, commit: string, rows: readonly BenchRow[]): Measurement {
  return { section, date: '2026-01-02', commit, quick: false, rows };
}

function stored(measurements: readonly Measurement[]) {
  return {
    measured: measurements.map(({ rows, ...rest }) => ({ ...rest, rowCount: rows.length })),
    rows: measurements.flatMap(({ rows }) => rows),
  };
}

describe('results of a bench run', () => {
  const scan = measurement('scan', 'old', [row('scan', 'a'), row('scan', 'b')]);
  const pause = measurement('pause', 'old', [row('pause', 'c')]);
  const peers = measurement('pause-peers', 'old', [row('pause', 'd')]);

  it('keeps for each row of which commit and day it is', () => {
    expect(measurementsOf(stored([scan, pause, peers]))).toEqual([scan, pause, peers]);
  });

  it('replaces the sections that were measured anew and keeps the others as what they are', () => {
    const anew = measurement('pause', 'new', [row('pause', 'e'), row('pause', 'f')]);
    expect(keepOlder(stored([scan, pause, peers]), [anew], SECTIONS)).toEqual([scan, anew, peers]);
  });

  it('keeps nothing of a file that does not say where its rows come from', () => {
    expect(keepOlder({ rows: [row('scan', 'a')] }, [pause], SECTIONS)).toEqual([pause]);
  });

  it('drops sections that there are no more', () => {
    expect(keepOlder(stored([scan, pause]), [], ['pause'])).toEqual([pause]);
  });
});
