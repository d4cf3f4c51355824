/**
 * What the documents say of the results, between markers, never by hand: six rows in README.md (headlines.ts), the questions that
 * docs/performance.md answers (questions.ts), and all rows in docs/performance-rows.md.
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { verdict, wrapped } from './figures.js';
import { headlineTable } from './headlines.js';
import { writePlots } from './plots.js';
import { frontPage } from './questions.js';
import { measurementsOf, type BenchResults } from './results.js';
import type { BenchArea, BenchRow } from './rows.js';

const BEGIN = '<!-- results:begin -->';
const END = '<!-- results:end -->';

/** What a reader would take an area's rows for, though they do not show it. Who repairs the measurement takes the sentence out. */
const NOT_SHOWN: Partial<Readonly<Record<BenchArea, string>>> = {
  scan:
    'The share of read bandwidth holds a bitmap that lies in the cache against memory that does not, so it does not show how close the ' +
    'scan comes to what the memory could do; and the C code is built without `-march=native`, so it is not the best that C can do.',
  'delta-size':
    'All pages are replayed in one share, and frames alone are counted: with several workers, and with manifest, index and device state, ' +
    'a checkpoint stores more than these rows show.',
  pause:
    "QEMU's live migrations ran with `downtime-limit` at its default of 300 ms, and of mapped-ram only a part of the time in which the guest " +
    "stands still was counted, so these rows show neither the shortest pause that QEMU can reach nor mapped-ram's; and the guest is at rest " +
    'at every stop.',
  'checkpoint-time':
    'The workload "rewritten with other random data" writes the data of one seed again and again, which Cairn recognises: its bytes and times ' +
    'are not those of data that was never seen. `total_ms` leaves out the start of Node.js and attaching; the row of the whole command has both.',
  'slow-down':
    'Each figure is one run without an interval, and single workloads differ by several percent from run to run.',
  memory:
    'The guests write little: these rows do not show what a watcher takes whose guest rewrites tens of MiB between checkpoints, which is more.',
};

/** Rewrites what lies between the markers in the documents, and the plots. */
export function writeTables(root: string, results: BenchResults): void {
  const { machine, rows } = results;
  const where = `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}; guests emulated (TCG) on the same cores`;
  const plots = writePlots(root, rows);
  replaceIn(join(root, 'README.md'), `${headlineTable(results)}\n\nOn ${where}.`);
  replaceIn(
    join(root, 'docs/performance.md'),
    `Measured on ${where}.\n\n${frontPage(rows, plots.ofQuestions)}`,
  );
  replaceIn(
    join(root, 'docs/performance-rows.md'),
    `Measured on ${where}; ${whenMeasured(results)}.\n\n${areaTables(rows, plots.byArea)}`,
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

function areaTables(rows: readonly BenchRow[], plots: ReadonlyMap<BenchArea, string>): string {
  return [...new Set(rows.map(({ area }) => area))]
    .map((area) => {
      const notShown = NOT_SHOWN[area] === undefined ? '' : `${wrapped(NOT_SHOWN[area])}\n\n`;
      return `## ${area}\n${notShown}${plots.get(area) ?? ''}${table(rows.filter((row) => row.area === area))}`;
    })
    .join('\n\n');
}

/** Markdown. */
export function table(rows: readonly BenchRow[]): string {
  const lines = rows.map((row) => {
    const peer = row.peer_value === null ? '' : `${row.peer}: ${figure(row.peer_value, row.unit)}`;
    return `| ${row.name} | ${row.workload} | ${figure(row.value, row.unit)} | ${peer} | ${row.ratio ?? ''} | ${verdict(row)} |`;
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
