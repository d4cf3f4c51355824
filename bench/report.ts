/** The tables of README.md and docs/performance.md, from the results: between markers, never by hand. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import type { BenchResults } from './main.js';
import type { BenchRow } from './rows.js';

const BEGIN = '<!-- results:begin -->';
const END = '<!-- results:end -->';

/** Rewrites what lies between the markers in both documents. */
export function writeTables(root: string, results: BenchResults): void {
  const { machine } = results;
  const where = `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}, ${results.date}; guests emulated (TCG) on the same cores`;
  replaceIn(join(root, 'docs/performance.md'), `Measured on ${where}.\n\n${areaTables(results.rows)}`);
  const promised = results.rows.filter(
    ({ area, goal }) => goal !== '' && (area === 'pause' || area === 'checkpoint-time'),
  );
  replaceIn(
    join(root, 'README.md'),
    `${table(promised)}\n\nFrom [bench/results/latest.json](bench/results/latest.json): ${where}. Everything else, misses ` +
      'included, is in [docs/performance.md](docs/performance.md).',
  );
}

function areaTables(rows: readonly BenchRow[]): string {
  return [...new Set(rows.map(({ area }) => area))]
    .map((area) => `## ${area}\n${table(rows.filter((row) => row.area === area))}`)
    .join('\n\n');
}

function table(rows: readonly BenchRow[]): string {
  const lines = rows.map((row) => {
    const peer = row.peer_value === null ? '' : `${row.peer}: ${figure(row.peer_value, row.unit)}`;
    const goal = row.met === null ? '' : `${row.goal}: ${row.met ? 'met' : '**missed**'}`;
    return `| ${row.name} | ${row.workload} | ${figure(row.value, row.unit)} | ${peer} | ${row.ratio ?? ''} | ${goal} |`;
  });
  return [
    '| what | workload | Cairn | against | ratio | goal |',
    '| --- | --- | --- | --- | --- | --- |',
    ...lines,
  ].join('\n');
}

function figure(value: number, unit: string): string {
  return `${value} ${unit}`;
}

function replaceIn(path: string, text: string): void {
  if (!existsSync(path)) return;
  const before = readFileSync(path, 'utf8');
  const from = before.indexOf(BEGIN);
  const to = before.indexOf(END);
  if (from < 0 || to < from) return;
  writeFileSync(path, `${before.slice(0, from)}${BEGIN}\n${text}\n${before.slice(to)}`);
}
