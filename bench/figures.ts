/** Figures as people read them, and sentences that need rows which a run may lack. */

import type { BenchRow } from './rows.js';

/** Three significant digits, in the unit that needs the fewest of them: 5.12 ms, 2.13 s, 987 kB, 24.6 MB. */
export function readable(value: number, unit: string): string {
  if (unit === 'ms' && value >= 1000) return readable(value / 1000, 's');
  if (unit === 'bytes') {
    const units = ['B', 'kB', 'MB', 'GB', 'TB'];
    const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
    return `${threeDigits(value / 1000 ** step)} ${units[step]!}`;
  }
  return `${threeDigits(value)} ${unit}`;
}

function threeDigits(value: number): string {
  return Math.abs(value) >= 100 ? `${Math.round(value)}` : `${Number(value.toPrecision(3))}`;
}

/** "at least 97 % less: missed"; empty for a row without a goal. */
export function verdict({ goal, met }: BenchRow): string {
  return met === null ? '' : `${goal}: ${met ? 'met' : '**missed**'}`;
}

/** The row with exactly these words; `peer` may be left out where one row has the others. */
export function findRow(
  rows: readonly BenchRow[],
  { area, name, workload, peer }: Pick<BenchRow, 'area' | 'name' | 'workload'> & { readonly peer?: string },
): BenchRow | undefined {
  return rows.find(
    (row) =>
      row.area === area &&
      row.name === name &&
      row.workload === workload &&
      (peer === undefined || row.peer === peer),
  );
}

/** A sentence about rows; nothing when one of them was not measured. */
export function sayOf<const Rows extends readonly (BenchRow | undefined)[]>(
  rows: Rows,
  text: (...found: { readonly [Index in keyof Rows]: NonNullable<Rows[Index]> }) => string,
): string {
  if (rows.includes(undefined)) return '';
  return text(...(rows as unknown as { readonly [Index in keyof Rows]: NonNullable<Rows[Index]> }));
}

/** Its figure. */
export function own({ value, unit }: BenchRow): string {
  return readable(value, unit);
}

/** The figure of its peer. */
export function peers({ peer_value, unit }: BenchRow): string {
  return readable(peer_value ?? Number.NaN, unit);
}

const COLUMNS = 110;

/** Broken at blanks that follow no digit (a unit stays with its number), so that the text of a document can be read in an editor as well. */
export function wrapped(text: string): string {
  const lines: string[] = [];
  for (const word of text.split(/(?<!\d) /)) {
    const line = lines.at(-1);
    if (line === undefined || line.length + 1 + word.length > COLUMNS) lines.push(word);
    else lines[lines.length - 1] = `${line} ${word}`;
  }
  return lines.join('\n');
}
