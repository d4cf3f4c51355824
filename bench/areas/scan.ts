/**
 * Dirty bitmap to page runs: `DirtyBitmap.toRuns`, as every checkpoint calls it, which allocates its result; the peers write to
 * memory that is there already. Bitmaps are random, or clustered like the dirty pages of the traces.
 */

import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { TraceReader } from '../../src/study/trace/trace-reader.js';
import { deltaPeers } from '../peers/delta-peers.js';
import { bitsTs, scanPeers, wordsTs, type Scan } from '../peers/scan-peers.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';
import { benchTraces } from '../trace/bench-traces.js';

const DENSITIES = [0, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 1];
/** Up to here a bitmap counts as sparse: its runs are few against the words that are read. */
const SPARSE = 0.0001;
/** Peers this slow are not repeated. */
const LONG_MS = 150;
/** Short scans are repeated until they take this long together. */
const ROUND_MS = 4;
const READ_BYTES = 1 << 29;

interface Shape {
  readonly name: string;
  readonly fill: (bitmap: DirtyBitmap, density: number) => void;
}

export async function* scanRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const area = 'scan';
  const sizesGib = context.quick ? [1, 64] : [1, 16, 128, 1024];
  const densities = context.quick ? [0, 0.0001, 0.01, 0.5, 1] : DENSITIES;
  const rounds = context.quick ? 3 : 7;
  const { bitsC, wordsC } = scanPeers();
  const lengths = await runLengths(context);
  const shapes: readonly Shape[] = [
    { name: 'random', fill: fillRandom },
    {
      name: 'clustered as in the traces',
      fill: (bitmap, density) => fillClustered(bitmap, density, lengths),
    },
  ];
  const readGbs = readBandwidth(rounds);
  const timesLess: number[] = [];
  const shares: number[] = [];
  let out = new Uint32Array(0);
  for (const gib of sizesGib) {
    const pageCount = gib * 262_144;
    for (const density of densities) {
      for (const shape of shapes) {
        const isSame = density === 0 || density === 1;
        if (isSame && shape !== shapes[0]) continue;
        const workload = `${gib} GiB, ${density * 100} % dirty${isSame ? '' : `, ${shape.name}`}`;
        context.progress(`scan: ${workload}`);
        const bitmap = new DirtyBitmap(pageCount);
        shape.fill(bitmap, density);
        const runs = bitmap.toRuns();
        if (out.length < runs.length) out = new Uint32Array(runs.length).fill(1);
        const halves = new Uint32Array(bitmap.words.buffer);
        const peers: readonly (readonly [string, Scan])[] = [
          ['bit by bit, C -O2', bitsC],
          ['find next bit, C -O2', wordsC],
          ['bit by bit, TypeScript', bitsTs],
          ['find next bit, TypeScript', wordsTs],
        ];
        for (const [name, scan] of peers) {
          if (scan(halves, pageCount, out, 1) * 2 !== runs.length)
            throw new Error(`${name} finds other runs in ${workload}`);
        }
        const times = interleaved(rounds, [
          (repeat) => {
            for (let i = 0; i < repeat; i++) bitmap.toRuns();
          },
          ...peers.map(
            ([, scan]) =>
              (repeat: number) =>
                scan(halves, pageCount, out, repeat),
          ),
        ]);
        const value = times[0]!;
        for (const [i, [peer]] of peers.entries()) {
          const row = {
            area,
            name: 'bitmap to runs',
            workload,
            unit: 'µs',
            value: value * 1000,
            peer,
            peerValue: times[i + 1]! * 1000,
          } as const;
          if (peer === 'find next bit, C -O2') yield againstPeer(row, 'faster', (ratio) => ratio < 1);
          else yield againstPeer(row);
        }
        if (density <= 0.01) timesLess.push(value / times[1]!);
        if (density <= SPARSE) {
          const gbs = pageCount / 8 / value / 1e6;
          shares.push(gbs / readGbs);
          yield againstPeer({
            area,
            name: 'bitmap read',
            workload,
            unit: 'GB/s',
            value: gbs,
            peer: 'read bandwidth, C -O3',
            peerValue: readGbs,
          });
        }
      }
    }
  }
  yield againstPeer(
    {
      area,
      name: 'time, median of all up to 1 % dirty',
      workload: 'all sizes, random and clustered',
      unit: '%',
      value: median(timesLess) * 100,
      peer: 'bit by bit, C -O2',
      peerValue: 100,
    },
    'at least 99.5 % less (thesis: 91.13 % less)',
    (ratio) => ratio <= 0.005,
  );
  yield againstPeer(
    {
      area,
      name: `share of read bandwidth, median of all up to ${SPARSE * 100} % dirty`,
      workload: 'all sizes, random and clustered',
      unit: '%',
      value: median(shares) * 100,
      peer: 'read bandwidth, C -O3',
      peerValue: 100,
    },
    'at least 70 %',
    (ratio) => ratio >= 0.7,
  );
}

/** Medians in milliseconds. All take turns, so that each sees the same noise. */
function interleaved(rounds: number, work: readonly ((repeat: number) => void)[]): readonly number[] {
  const repeats = work.map((run) => {
    run(1);
    const started = performance.now();
    run(1);
    return Math.max(1, Math.ceil(ROUND_MS / Math.max(1e-4, performance.now() - started)));
  });
  const times = work.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    work.forEach((run, i) => {
      if (round >= 2 && times[i]![0]! > LONG_MS) return;
      const started = performance.now();
      run(repeats[i]!);
      times[i]!.push((performance.now() - started) / repeats[i]!);
    });
  }
  return times.map(median);
}

/** GB/s over memory that no cache holds. */
function readBandwidth(rounds: number): number {
  const { readAll } = deltaPeers();
  const words = new Uint8Array(READ_BYTES).fill(1);
  const times = interleaved(rounds, [() => readAll(words, READ_BYTES / 8)]);
  return READ_BYTES / times[0]! / 1e6;
}

function fillRandom(bitmap: DirtyBitmap, density: number): void {
  const random = randomSource();
  const { pageCount } = bitmap;
  if (density === 1) {
    bitmap.setRange(0, pageCount);
    return;
  }
  if (density >= 0.5) {
    // A word of random bits has half of them set; two of them joined three quarters. Good enough around the middle.
    const halves = new Uint32Array(bitmap.words.buffer);
    for (let i = 0; i < halves.length; i++) {
      halves[i] = random();
      if (density > 0.6) halves[i]! |= random() | random();
    }
    return;
  }
  for (let left = Math.round(pageCount * density); left > 0;) {
    const page = random() % pageCount;
    if (bitmap.has(page)) continue;
    bitmap.set(page);
    left--;
  }
}

/** Runs as long as in the traces, at distances that give the density; some runs touch, as they do there. */
function fillClustered(bitmap: DirtyBitmap, density: number, lengths: Uint32Array): void {
  const random = randomSource();
  const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
  const meanGap = (mean * (1 - density)) / density;
  for (let page = 0; ;) {
    // Distances vary more than evenly: many short, few long.
    const draw = random() / 2 ** 32;
    page += Math.round(meanGap * 3 * draw * draw);
    const length = Math.min(lengths[random() % lengths.length]!, bitmap.pageCount - page);
    if (length <= 0) return;
    bitmap.setRange(page, length);
    page += length;
  }
}

async function runLengths(context: BenchContext): Promise<Uint32Array> {
  const lengths: number[] = [];
  for (const { path } of await benchTraces(context)) {
    const reader = TraceReader.open(path);
    for (const { pages } of reader.epochs()) {
      const bitmap = new DirtyBitmap(reader.header.layout.pageSpan);
      for (const page of pages) bitmap.set(page);
      const runs = bitmap.toRuns();
      for (let i = 1; i < runs.length; i += 2) lengths.push(runs[i]!);
    }
    reader.close();
  }
  return Uint32Array.from(lengths);
}

/** xorshift32, so that every run of the bench sees the same bitmaps. */
function randomSource(): () => number {
  let state = 88172645;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
