/** The tables of README.md and docs/performance.md, from the results: between markers, never by hand. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { writePlots } from './plots.js';
import { measurementsOf, type BenchResults } from './results.js';
import type { BenchArea, BenchRow } from './rows.js';

const BEGIN = '<!-- results:begin -->';
const END = '<!-- results:end -->';

/** Rewrites what lies between the markers in both documents. */
export function writeTables(root: string, results: BenchResults): void {
  const { machine } = results;
  const where = `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}; guests emulated (TCG) on the same cores; ${whenMeasured(results)}`;
  const plots = writePlots(root, results.rows);
  replaceIn(join(root, 'docs/performance.md'), `Measured on ${where}.\n\n${areaTables(results.rows, plots)}`);
  const promised = results.rows.filter(isHeadline);
  replaceIn(
    join(root, 'README.md'),
    `${table(promised)}\n\nFrom [bench/results/latest.json](bench/results/latest.json): ${where}. Everything else, misses ` +
      'included, is in [docs/performance.md](docs/performance.md).',
  );
}

/** One commit and day where all is of one run; else which sections are of which. */
function whenMeasured(results: BenchResults): string {
  const sectionsOf = new Map<string, string[]>();
  for (const { section, commit, date, quick } of measurementsOf(results)) {
    const run = `${date}, commit ${commit}${quick ? ', quick' : ''}`;
    sectionsOf.set(run, [...(sectionsOf.get(run) ?? []), section]);
  }
  const runs = [...sectionsOf];
  if (runs.length === 1) return runs[0]![0];
  return runs.map(([run, sections]) => `${sections.join(', ')}: ${run}`).join('; ');
}

/** What the README shows of each area: the figures that sum it up and have a goal. */
function isHeadline({ area, name, workload, peer, goal }: BenchRow): boolean {
  if (goal === '') return false;
  switch (area) {
    case 'scan':
    case 'delta-size':
    case 'delta-speed':
      return workload.startsWith('all ');
    case 'pause':
      return workload.endsWith('between checkpoints') || name === 'pause, p50';
    case 'checkpoint-time':
      return peer.endsWith('durable') || workload.includes('libvirt') || workload.includes('median of');
    case 'slow-down':
      return workload.startsWith('median of');
    case 'growth':
      return true;
    default:
      return false;
  }
}

function areaTables(rows: readonly BenchRow[], plots: ReadonlyMap<BenchArea, string>): string {
  return [...new Set(rows.map(({ area }) => area))]
    .map((area) => `## ${area}\n${plots.get(area) ?? ''}${table(rows.filter((row) => row.area === area))}`)
    .join('\n\n');
}

/** Markdown. */
export function table(rows: readonly BenchRow[]): string {
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

/** What lies between the markers of a document; nothing where it has none. */
export function replaceIn(path: string, text: string): void {
  if (!existsSync(path)) return;
  const before = readFileSync(path, 'utf8');
  const from = before.indexOf(BEGIN);
  const to = before.indexOf(END);
  if (from < 0 || to < from) return;
  writeFileSync(path, `${before.slice(0, from)}${BEGIN}\n${text}\n${before.slice(to)}`);
}
