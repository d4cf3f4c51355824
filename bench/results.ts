/** The file of results, bench/results/latest.json. */

import type { BenchRow } from './rows.js';

export interface BenchResults {
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryGib: number;
    readonly kernel: string;
    readonly node: string;
  };
  /** Of the latest run. Rows may be older: `measured` tells. */
  readonly date: string;
  readonly commit: string;
  /** The sections that `rows` come from, in the order of the rows. */
  readonly measured: readonly MeasuredSection[];
  readonly rows: readonly BenchRow[];
}

export interface MeasuredSection {
  readonly section: string;
  readonly date: string;
  /** Ends in "+changes" when the tree was not that of the commit. */
  readonly commit: string;
  readonly quick: boolean;
  readonly rowCount: number;
}

/** What one section measured, when and of what. */
export interface Measurement extends Omit<MeasuredSection, 'rowCount'> {
  readonly rows: readonly BenchRow[];
}

/** Fresh sections as they are, the others as `before` has them, in the order of `sections`. */
export function keepOlder(
  before: Partial<BenchResults> | undefined,
  fresh: readonly Measurement[],
  sections: readonly string[],
): readonly Measurement[] {
  const older = measurementsOf(before);
  return sections.flatMap((name) => {
    const found =
      fresh.find(({ section }) => section === name) ?? older.find(({ section }) => section === name);
    return found === undefined ? [] : [found];
  });
}

/** Nothing from a file that does not say where its rows come from: their age is not known. */
export function measurementsOf(results: Partial<BenchResults> | undefined): readonly Measurement[] {
  const { measured = [], rows = [] } = results ?? {};
  let next = 0;
  return measured.map(({ rowCount, ...section }) => {
    const own = rows.slice(next, next + rowCount);
    next += rowCount;
    return { ...section, rows: own };
  });
}
