/**
 * `npm run bench -- [--quick] [--area pause,chain] [--again]`: measures Cairn against its peers and the limits of this machine, in
 * one run. Rows are printed as they come and written to bench/results/latest.json; areas that were not run keep the rows
 * they had. A run that was cut off goes on where it stopped.
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
import { pausePeerRows } from './areas/pause-peers.js';
import { pauseSizeRows } from './areas/pause-sizes.js';
import { pauseRows } from './areas/pause.js';
import { scanRows } from './areas/scan.js';
import { slowDownRows } from './areas/slow-down.js';
import { writeTables } from './report.js';
import { RunProgress } from './run-progress.js';
import type { BenchArea, BenchContext, BenchRow } from './rows.js';
import { workloadCache } from './trace/workload-guest.js';

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

type Rows = (context: BenchContext) => AsyncGenerator<BenchRow>;

/** What runs in one go and is kept as a whole. Several may belong to one area. */
const SECTIONS: readonly { readonly name: string; readonly area: BenchArea; readonly run: Rows }[] = [
  { name: 'scan', area: 'scan', run: scanRows },
  { name: 'delta-size', area: 'delta-size', run: deltaSizeRows },
  { name: 'delta-speed', area: 'delta-speed', run: deltaSpeedRows },
  { name: 'pause', area: 'pause', run: pauseRows },
  { name: 'pause-peers', area: 'pause', run: pausePeerRows },
  { name: 'pause-sizes', area: 'pause', run: pauseSizeRows },
  { name: 'checkpoint-time', area: 'checkpoint-time', run: checkpointTimeRows },
  { name: 'slow-down', area: 'slow-down', run: slowDownRows },
  { name: 'memory', area: 'memory', run: memoryRows },
  { name: 'chain', area: 'chain', run: chainRows },
  { name: 'growth', area: 'growth', run: growthRows },
];
const AREAS = [...new Set(SECTIONS.map(({ area }) => area))];

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const RESULTS = join(ROOT, 'bench/results/latest.json');

const { values } = parseArgs({
  options: { quick: { type: 'boolean' }, area: { type: 'string' }, again: { type: 'boolean' } },
});
const areas = values.area?.split(',') ?? AREAS;
const unknown = areas.filter((area) => !AREAS.some((known) => known === area));
if (unknown.length > 0) {
  process.stderr.write(`no such area: ${unknown.join(', ')}; there are ${AREAS.join(', ')}\n`);
  process.exit(2);
}
const context: BenchContext = {
  quick: values.quick === true,
  progress: (text) => process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : ''),
};
const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: ROOT, encoding: 'utf8' }).trim();
const before = existsSync(RESULTS) ? (JSON.parse(readFileSync(RESULTS, 'utf8')) as BenchResults).rows : [];
const progress = RunProgress.open(join(workloadCache(), 'bench-progress.json'), {
  commit,
  quick: context.quick,
  again: values.again === true,
});
const chosen = SECTIONS.filter(({ area }) => areas.includes(area));
for (const [i, { name, run }] of chosen.entries()) {
  const where = `[${i + 1}/${chosen.length}]`;
  if (progress.rowsOf(name) !== undefined) {
    process.stderr.write(`${where} ${name}: measured before at this commit, kept (--again measures anew)\n`);
    continue;
  }
  process.stderr.write(`${where} ${name}\n`);
  const rows: BenchRow[] = [];
  for await (const row of run(context)) {
    context.progress('');
    process.stdout.write(`${describe(row)}\n`);
    rows.push(row);
  }
  progress.done(name, rows);
  save();
}
save();
process.exit(0);

/** Areas of which nothing was measured at this commit keep the rows they had. */
function save(): void {
  const rows = AREAS.flatMap((area) => {
    const sections = SECTIONS.filter((section) => section.area === area);
    const fresh = sections.flatMap(({ name }) => progress.rowsOf(name) ?? []);
    return fresh.length > 0 ? fresh : before.filter((row) => row.area === area);
  });
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
    rows,
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
