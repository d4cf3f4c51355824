/**
 * `npm run bench -- [--quick] [--area pause,chain] [--again] [--report-only]`: measures Cairn against its peers and the limits of this machine, in
 * one run. Rows are printed as they come and written to bench/results/latest.json; areas that were not run keep the rows
 * they had, and `measured` says of which commit and day. A run that was cut off goes on where it stopped. `--report-only`
 * measures nothing and writes the documents and plots anew from the rows that are there.
 *
 * Each section has a budget: when it is used up, repeats end early. What a section needs at least is done in any case.
 */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { chainLoadRows } from './areas/chain-loads.js';
import { indexSizeRows } from './areas/index-size.js';
import { chainRows } from './areas/chain.js';
import { checkpointTimeRows } from './areas/checkpoint-time.js';
import { deltaSizeRows } from './areas/delta-size.js';
import { deltaSpeedRows } from './areas/delta-speed.js';
import { growthRows } from './areas/growth.js';
import { libvirtSaveRows } from './areas/libvirt-save.js';
import { memoryRows } from './areas/memory.js';
import { pausePeerRows } from './areas/pause-peers.js';
import { pauseSizeRows } from './areas/pause-sizes.js';
import { pauseStreamRows } from './areas/pause-stream.js';
import { pauseRows } from './areas/pause.js';
import { scanRows } from './areas/scan.js';
import { slowDownRows } from './areas/slow-down.js';
import { CHANGED, commitOfTree, thisMachine } from './provenance.js';
import { writeTables } from './report.js';
import { keepOlder, type BenchResults, type Measurement } from './results.js';
import { RunProgress } from './run-progress.js';
import type { BenchArea, BenchContext, BenchRow } from './rows.js';
import { workloadCache } from './trace/workload-guest.js';

type Rows = (context: BenchContext) => AsyncGenerator<BenchRow>;

interface Section {
  readonly name: string;
  /** It has rows of each. */
  readonly areas: readonly BenchArea[];
  readonly run: Rows;
  /** Budgets of a quick and a full run, in seconds. */
  readonly quick: number;
  readonly full: number;
}

/** What runs in one go and is kept as a whole. Several may belong to one area. */
const SECTIONS: readonly Section[] = [
  { name: 'scan', areas: ['scan'], run: scanRows, quick: 20, full: 180 },
  { name: 'delta-size', areas: ['delta-size'], run: deltaSizeRows, quick: 20, full: 180 },
  { name: 'delta-speed', areas: ['delta-speed'], run: deltaSpeedRows, quick: 25, full: 180 },
  { name: 'pause', areas: ['pause'], run: pauseRows, quick: 25, full: 300 },
  { name: 'pause-peers', areas: ['pause'], run: pausePeerRows, quick: 40, full: 180 },
  { name: 'pause-sizes', areas: ['pause'], run: pauseSizeRows, quick: 25, full: 210 },
  { name: 'pause-stream', areas: ['pause'], run: pauseStreamRows, quick: 60, full: 300 },
  { name: 'checkpoint-time', areas: ['checkpoint-time'], run: checkpointTimeRows, quick: 25, full: 180 },
  {
    name: 'libvirt-save',
    areas: ['pause', 'checkpoint-time'],
    run: libvirtSaveRows,
    quick: 30,
    full: 90,
  },
  { name: 'slow-down', areas: ['slow-down'], run: slowDownRows, quick: 30, full: 420 },
  { name: 'memory', areas: ['memory'], run: memoryRows, quick: 25, full: 90 },
  { name: 'chain', areas: ['chain'], run: chainRows, quick: 15, full: 60 },
  { name: 'chain-loads', areas: ['chain'], run: chainLoadRows, quick: 60, full: 1200 },
  { name: 'index-size', areas: ['chain'], run: indexSizeRows, quick: 20, full: 90 },
  { name: 'growth', areas: ['growth'], run: growthRows, quick: 20, full: 150 },
];
/** What `--area` takes: areas, and single sections. */
const AREAS = [...new Set(SECTIONS.flatMap(({ name, areas }): string[] => [...areas, name]))];

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const RESULTS = join(ROOT, 'bench/results/latest.json');

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    area: { type: 'string' },
    again: { type: 'boolean' },
    'report-only': { type: 'boolean' },
  },
});
const areas = values.area?.split(',') ?? AREAS;
const unknown = areas.filter((area) => !AREAS.includes(area));
if (unknown.length > 0) {
  process.stderr.write(`no such area: ${unknown.join(', ')}; there are ${AREAS.join(', ')}\n`);
  process.exit(2);
}
const quick = values.quick === true;
const commit = commitOfTree(ROOT);
const before = existsSync(RESULTS) ? (JSON.parse(readFileSync(RESULTS, 'utf8')) as BenchResults) : undefined;
if (values['report-only'] === true) {
  if (before === undefined) throw new Error(`there is no ${RESULTS} to report of`);
  writeTables(ROOT, before);
  process.exit(0);
}
const progress = RunProgress.open(join(workloadCache(), 'bench-progress.json'), {
  commit,
  quick,
  // Two changed trees of one commit look the same, so nothing of one is kept for the other.
  again: values.again === true || commit.endsWith(CHANGED),
});
const chosen = SECTIONS.filter(({ name, areas: own }) => [name, ...own].some((area) => areas.includes(area)));
const budget = (sections: readonly Section[]): number =>
  sections.reduce((sum, section) => sum + (quick ? section.quick : section.full), 0);
for (const [i, section] of chosen.entries()) {
  const { name } = section;
  const left = `about ${Math.ceil(budget(chosen.slice(i)) / 60)} min left`;
  const where = `[${i + 1}/${chosen.length}]`;
  if (progress.sectionOf(name) !== undefined) {
    process.stderr.write(`${where} ${name}: measured before at this commit, kept (--again measures anew)\n`);
    continue;
  }
  process.stderr.write(`${where} ${name} (${left})\n`);
  const started = performance.now();
  const until = started + budget([section]) * 1000;
  const context: BenchContext = {
    quick,
    progress: (text) => process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${where} ${text}` : ''),
    timeIsUp: (share = 1) => performance.now() > started + (until - started) * share,
  };
  const rows: BenchRow[] = [];
  for await (const row of section.run(context)) {
    context.progress('');
    process.stdout.write(`${describe(row)}\n`);
    rows.push(row);
  }
  progress.done(name, rows);
  save();
  process.stderr.write(`${where} ${name}: ${Math.round((performance.now() - started) / 1000)} s\n`);
}
save();
process.exit(0);

/** Sections of which nothing was measured at this commit keep the rows they had. */
function save(): void {
  const fresh = SECTIONS.flatMap(({ name }): Measurement[] => {
    const section = progress.sectionOf(name);
    return section === undefined ? [] : [{ section: name, commit, quick, ...section }];
  });
  const all = keepOlder(
    before,
    fresh,
    SECTIONS.map(({ name }) => name),
  );
  const results: BenchResults = {
    machine: thisMachine(),
    date: new Date().toISOString().slice(0, 10),
    commit,
    measured: all.map(({ rows, ...measured }) => ({ ...measured, rowCount: rows.length })),
    rows: all.flatMap(({ rows }) => rows),
  };
  mkdirSync(dirname(RESULTS), { recursive: true });
  writeFileSync(RESULTS, `${JSON.stringify(results, null, 1)}\n`);
  writeTables(ROOT, results);
}

function describe(row: BenchRow): string {
  const peer =
    row.peer_value === null ? '' : ` | ${row.peer}: ${row.peer_value} ${row.unit}, ratio ${row.ratio ?? ''}`;
  const goal = row.goal === '' ? '' : ` | goal: ${row.goal}: ${row.met === true ? 'met' : 'MISSED'}`;
  return `${row.area}: ${row.name} (${row.workload}): ${row.value} ${row.unit}${peer}${goal}`;
}
