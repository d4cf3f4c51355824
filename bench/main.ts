/**
 * `npm run bench -- [--quick] [--area pause,chain]`: measures Cairn against its peers and the limits of this machine, in one run.
 * Rows are printed as they come and written to bench/results/latest.json; areas that were not run keep the rows they had. A full
 * run that was interrupted goes on with the areas that are missing, as long as the commit is the same (--again: from the start).
 */

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { chainRows } from './areas/chain.js';
import { checkpointTimeRows } from './areas/checkpoint-time.js';
import { deltaSizeRows } from './areas/delta-size.js';
import { deltaSpeedRows } from './areas/delta-speed.js';
import { growthRows } from './areas/growth.js';
import { memoryRows } from './areas/memory.js';
import { pauseRows } from './areas/pause.js';
import { scanRows } from './areas/scan.js';
import { slowDownRows } from './areas/slow-down.js';
import { BenchProgress } from './progress.js';
import { writeTables } from './report.js';
import type { BenchArea, BenchContext, BenchRow } from './rows.js';

export interface BenchResults {
  readonly machine: {
    readonly cpu: string;
    readonly cores: number;
    readonly memoryGib: number;
    readonly kernel: string;
    readonly node: string;
  };
  readonly date: string;
  readonly commit: string;
  readonly rows: readonly BenchRow[];
}

const AREAS: Partial<Record<BenchArea, (context: BenchContext) => AsyncGenerator<BenchRow>>> = {
  scan: scanRows,
  'delta-size': deltaSizeRows,
  'delta-speed': deltaSpeedRows,
  pause: pauseRows,
  'checkpoint-time': checkpointTimeRows,
  'slow-down': slowDownRows,
  memory: memoryRows,
  chain: chainRows,
  growth: growthRows,
};

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const RESULTS = join(ROOT, 'bench/results/latest.json');

const { values } = parseArgs({
  options: { quick: { type: 'boolean' }, area: { type: 'string' }, again: { type: 'boolean' } },
});
const chosen = (values.area?.split(',') ?? Object.keys(AREAS)) as BenchArea[];
const unknown = chosen.filter((area) => AREAS[area] === undefined);
if (unknown.length > 0) {
  process.stderr.write(`no such area: ${unknown.join(', ')}; there are ${Object.keys(AREAS).join(', ')}\n`);
  process.exit(2);
}
const context: BenchContext = {
  quick: values.quick === true,
  progress: (text) => process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : ''),
};
const before = existsSync(RESULTS) ? (JSON.parse(readFileSync(RESULTS, 'utf8')) as BenchResults).rows : [];
const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: ROOT, encoding: 'utf8' }).trim();
const progress = context.quick ? undefined : new BenchProgress(commit);
if (values.again === true) progress?.clear();
let rows = before.filter(({ area }) => !chosen.includes(area));
for (const area of chosen) {
  const known = values.again === true ? undefined : progress?.rowsOf(area);
  if (known !== undefined) process.stdout.write(`${area}: measured before the interruption\n`);
  const measured: BenchRow[] = [...(known ?? [])];
  if (known === undefined) {
    for await (const row of AREAS[area]!(context)) {
      context.progress('');
      process.stdout.write(`${describe(row)}\n`);
      measured.push(row);
    }
    progress?.finish(area, measured);
  }
  rows = [...rows, ...measured];
  save(rows);
}
progress?.clear();
process.exit(0);

function save(all: readonly BenchRow[]): void {
  const [cpu] = cpus();
  const results: BenchResults = {
    machine: {
      cpu: cpu?.model ?? 'unknown',
      cores: cpus().length,
      memoryGib: Math.round(totalmem() / 2 ** 30),
      kernel: release().replace(/-.*/, ''),
      node: process.version,
    },
    date: new Date().toISOString().slice(0, 10),
    commit,
    rows: all,
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
