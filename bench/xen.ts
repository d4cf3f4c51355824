/**
 * `node dist/bench/xen.js [DIR]`: the comparison of the thesis on a real Xen in the lab (test/lab/xen/dom0/comparison.ts), or what a run of
 * `run-lab.js compare-128-random compare-512-random compare-128-files compare-512-files --out DIR` left in DIR. Rows go to bench/results/xen.json, the table to docs/proofs.md.
 *
 * Not a part of `npm run bench`: it takes half an hour, and one emulated machine inside another.
 */

import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { ensureXenLab, runXenLab, type ScenarioResult } from '../test/lab/xen/run-lab.js';

import { commitOfTree, thisMachine } from './provenance.js';
import { replaceIn, table } from './report.js';
import { againstPeer, alone, median, type BenchRow } from './rows.js';

type Sample = Readonly<Record<string, number>>;

interface Comparison {
  readonly memoryMib: number;
  /** What the guest does, in words. */
  readonly load: string;
  readonly fullSaves: readonly Sample[];
  /** A base, and increments. */
  readonly checkpoints: readonly Sample[];
  readonly scan: Sample;
}

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const RESULTS = join(ROOT, 'bench/results/xen.json');
const LIMIT_S = 3600;
const SCENARIOS: readonly string[] = [128, 512].flatMap((mib) =>
  ['random', 'files'].map((load) => `compare-${mib}-${load}`),
);
/** Of issue and thesis: what is left of the peer's figure. */
const TIME_LEFT = 0.1;
const STOP_LEFT = 0.2;
const BYTES_LEFT = 0.2;
const SCAN_LEFT = 1 - 0.9113;

const results = scenarioResults(process.argv[2]);
const comparisons = results
  .filter(({ name }) => SCENARIOS.includes(name))
  .map(({ name, ok, error, figures }) => {
    if (!ok || figures === undefined) throw new Error(`${name}: ${error ?? 'no figures'}`);
    return figures as unknown as Comparison;
  })
  .sort((a, b) => a.memoryMib - b.memoryMib);
if (comparisons.length === 0) throw new Error('nothing was compared');
const rows = comparisons.flatMap((found) =>
  rowsOf(
    found,
    comparisons.find(({ load }) => load === found.load)!,
  ),
);
const machine = thisMachine();
const [date, commit] = [new Date().toISOString().slice(0, 10), commitOfTree(ROOT)];
writeFileSync(RESULTS, `${JSON.stringify({ machine, date, commit, rows, comparisons }, null, 1)}\n`);
replaceIn(
  join(ROOT, 'docs/proofs.md'),
  `${table(rows)}\n\nFrom [bench/results/xen.json](../bench/results/xen.json): Xen 4.17 and dom0 with one processor, emulated (TCG) on ` +
    `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}; ${date}, commit ${commit}.`,
);
process.stdout.write(`${table(rows)}\n`);

function scenarioResults(dir: string | undefined): readonly ScenarioResult[] {
  if (dir === undefined) {
    const problem = ensureXenLab();
    if (problem !== '') throw new Error(problem);
    return runXenLab(SCENARIOS, { outDir: mkdtempSync(join(tmpdir(), 'cairn-xen-bench-')), limitS: LIMIT_S })
      .results;
  }
  const path = join(dir, 'results.jsonl');
  if (!existsSync(path)) throw new Error(`there is no ${path}`);
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line) as ScenarioResult);
}

/** Against the smallest guest: with more memory the gain is to grow. */
function rowsOf(found: Comparison, smallest: Comparison): readonly BenchRow[] {
  const workload = `PVH, ${found.memoryMib} MiB, ${found.load}`;
  const area = 'xen';
  const base = found.checkpoints[0]!;
  const timeBound = found === smallest ? TIME_LEFT : Math.min(TIME_LEFT, timeLeft(smallest));
  return [
    againstPeer(
      {
        area,
        name: 'checkpoint, start to durable',
        workload,
        unit: 'ms',
        peer: 'xl save -c',
        value: of(increments(found), 'totalMs'),
        peerValue: of(found.fullSaves, 'totalMs'),
      },
      found === smallest
        ? 'at least 90 % less'
        : `at least 90 % less, and more than at ${smallest.memoryMib} MiB`,
      (ratio) => ratio <= timeBound,
    ),
    againstPeer(
      {
        area,
        name: 'guest stopped',
        workload,
        unit: 'ms',
        peer: 'xl save -c',
        value: of(increments(found), 'stopMs'),
        peerValue: of(found.fullSaves, 'stopMs'),
      },
      'at least 80 % less',
      (ratio) => ratio <= STOP_LEFT,
    ),
    againstPeer(
      {
        area,
        name: 'stored bytes of an increment',
        workload,
        unit: 'bytes',
        peer: 'all dirty pages',
        value: of(increments(found), 'storedBytes'),
        peerValue: of(increments(found), 'pageGranularBytes'),
      },
      'at least 80 % less',
      (ratio) => ratio <= BYTES_LEFT,
    ),
    againstPeer(
      {
        area,
        name: 'scan of the dirty bitmap',
        workload,
        unit: 'ms',
        peer: 'bit by bit',
        value: found.scan.fastMs!,
        peerValue: found.scan.bitByBitMs!,
      },
      'at least 91.13 % less',
      (ratio) => ratio <= SCAN_LEFT,
    ),
    alone({ area, name: 'base, start to durable', workload, unit: 'ms', value: base.totalMs! }),
    alone({ area, name: 'guest stopped for the base', workload, unit: 'ms', value: base.stopMs! }),
  ];
}

function increments({ checkpoints }: Comparison): readonly Sample[] {
  return checkpoints.slice(1);
}

function timeLeft(found: Comparison): number {
  return of(increments(found), 'totalMs') / of(found.fullSaves, 'totalMs');
}

function of(samples: readonly Sample[], key: string): number {
  return median(samples.map((sample) => sample[key] ?? Number.NaN));
}
