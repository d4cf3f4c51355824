/**
 * GB/s of dirty pages through the encoder and decoder alone, one core: Cairn's kernels against XBZRLE in C, on the same
 * pages, in turns. The limit is a plain compare of both versions. Then two workers against one.
 */

import { performance } from 'node:perf_hooks';
import { Worker } from 'node:worker_threads';

import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { deltaPeers } from '../peers/delta-peers.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';
import { benchTraces, contentEpochs, type BenchTrace } from '../trace/bench-traces.js';
import { CodecLoop, ENCODES_PER_MESSAGE } from './codec-loop.js';

/** 64 MiB of each version: more than any cache of this size of machine keeps. */
const MOST_PAGES = 16 * 1024;

interface PagePairs {
  readonly count: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export async function* deltaSpeedRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const area = 'delta-speed';
  const rounds = context.quick ? 5 : 15;
  const peers = deltaPeers();
  const shares: number[] = [];
  const pairs: number[] = [];
  for (const trace of await benchTraces(context)) {
    context.progress(`delta-speed: ${trace.label}`);
    const { count, before, after } = pagesOf(trace, context.quick ? MOST_PAGES / 4 : MOST_PAGES);
    const loop = new CodecLoop(before, after);
    const out = new Uint8Array(after.length + 4096).fill(1);
    const lengths = new Uint16Array(count);
    const restored = before.slice();
    const gigabytes = after.length / 1e9;
    const speeds = { encode: [], xbzrleEncode: [], decode: [], xbzrleDecode: [], compare: [] } as Record<
      'encode' | 'xbzrleEncode' | 'decode' | 'xbzrleDecode' | 'compare',
      number[]
    >;
    const time = (name: keyof typeof speeds, run: () => void): void => {
      const started = performance.now();
      run();
      speeds[name].push(gigabytes / ((performance.now() - started) / 1000));
    };
    for (let round = 0; round < rounds; round++) {
      // Decoding leaves both with the new contents.
      restored.set(before);
      loop.restoreBases();
      time('compare', () => peers.compareAll(before, after, after.length / 8));
      time('encode', () => loop.encode());
      time('xbzrleEncode', () => peers.xbzrleEncode(before, after, count, out, lengths));
      time('decode', () => loop.decode());
      time('xbzrleDecode', () => peers.xbzrleDecode(restored, count, out, lengths));
      if (round > 0) continue;
      if (Buffer.compare(restored, after) !== 0) throw new Error(`XBZRLE does not decode ${trace.label}`);
      loop.check(after);
    }
    const workload = `${trace.label} (${count} pages)`;
    const encode = { area, name: 'encode', workload, unit: 'GB/s', value: median(speeds.encode) } as const;
    yield againstPeer(
      { ...encode, peer: 'XBZRLE, C -O3 -march=native', peerValue: median(speeds.xbzrleEncode) },
      'at least as fast',
      (ratio) => ratio >= 1,
    );
    const limit = { peer: 'plain compare of both versions, C', peerValue: median(speeds.compare) };
    yield againstPeer({ ...encode, ...limit });
    shares.push(encode.value / limit.peerValue);
    const decode = { area, name: 'decode', workload, unit: 'GB/s', value: median(speeds.decode) } as const;
    yield againstPeer(
      { ...decode, peer: 'XBZRLE, C -O3 -march=native', peerValue: median(speeds.xbzrleDecode) },
      'at least as fast',
      (ratio) => ratio >= 1,
    );
    const workers = await twoAgainstOne({ count, before, after }, context.quick ? 3 : 7);
    pairs.push(workers.two / workers.one);
    yield againstPeer({
      area,
      name: 'encode, two workers',
      workload,
      unit: 'GB/s',
      value: workers.two,
      peer: 'one worker',
      peerValue: workers.one,
    });
  }
  yield againstPeer(
    {
      area,
      name: 'encode, share of the plain compare, median of the workloads',
      workload: 'all traces',
      unit: '%',
      value: median(shares) * 100,
      peer: 'plain compare of both versions, C',
      peerValue: 100,
    },
    'at least 80 %',
    (ratio) => ratio >= 0.8,
  );
  yield againstPeer(
    {
      area,
      name: 'encode, two workers, median of the workloads',
      workload: 'all traces',
      unit: 'x',
      value: median(pairs),
      peer: 'one worker',
      peerValue: 1,
    },
    'at least 1.8x',
    (ratio) => ratio >= 1.8,
  );
}

function pagesOf(trace: BenchTrace, most: number): PagePairs {
  const epochs = contentEpochs(trace, 64);
  const total = epochs.reduce((sum, { contentPages }) => sum + contentPages.length, 0);
  const count = Math.min(most, total);
  const before = new Uint8Array(count * PAGE_SIZE_BYTES);
  const after = new Uint8Array(count * PAGE_SIZE_BYTES);
  let at = 0;
  for (const epoch of epochs) {
    const room = Math.min(before.length - at, epoch.before.length);
    before.set(epoch.before.subarray(0, room), at);
    after.set(epoch.after.subarray(0, room), at);
    at += room;
  }
  return { count, before, after };
}

interface WorkerReport {
  readonly startedNs: bigint;
  readonly endedNs: bigint;
}

/** The same pages by one worker, and by two that take half each. GB/s, medians of `rounds` taken in turns. */
async function twoAgainstOne(
  { before, after }: PagePairs,
  rounds: number,
): Promise<{ readonly one: number; readonly two: number }> {
  const half = Math.floor(after.length / PAGE_SIZE_BYTES / 2) * PAGE_SIZE_BYTES;
  const parts = [
    { before, after },
    { before: before.subarray(0, half), after: after.subarray(0, half) },
    { before: before.subarray(half), after: after.subarray(half) },
  ];
  const workers = await Promise.all(
    parts.map(async (part) => {
      const worker = new Worker(new URL('./codec-worker.js', import.meta.url), {
        workerData: { before: part.before.slice(), after: part.after.slice() },
      });
      await message(worker);
      return worker;
    }),
  );
  try {
    const speedOf = async (chosen: readonly Worker[]): Promise<number> => {
      const reports = (await Promise.all(
        chosen.map((worker) => {
          const report = message(worker);
          worker.postMessage('encode');
          return report;
        }),
      )) as WorkerReport[];
      const started = reports.reduce(
        (least, { startedNs }) => (startedNs < least ? startedNs : least),
        reports[0]!.startedNs,
      );
      const ended = reports.reduce((most, { endedNs }) => (endedNs > most ? endedNs : most), 0n);
      return (after.length * ENCODES_PER_MESSAGE) / Number(ended - started);
    };
    const one: number[] = [];
    const two: number[] = [];
    for (let round = 0; round < rounds; round++) {
      one.push(await speedOf(workers.slice(0, 1)));
      two.push(await speedOf(workers.slice(1)));
    }
    return { one: median(one), two: median(two) };
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

function message(worker: Worker): Promise<unknown> {
  return new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}
