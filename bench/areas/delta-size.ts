/**
 * Bytes stored per checkpoint, and the speed at that size: each epoch of each trace as a checkpoint. Cairn's figure is what
 * its frames take, with page numbers, references, digests and checksums; a peer's is its payload and the page headers it defines, if any.
 * Every peer sees all pages of a checkpoint at once.
 */

import { deltaPeers, peerSizes, type PeerSize } from '../peers/delta-peers.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';
import { benchTraces, contentEpochs } from '../trace/bench-traces.js';
import { replay } from '../trace/replay.js';

/** As `cairn checkpoint` by default. */
const LEVEL = 3;

export async function* deltaSizeRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const area = 'delta-size';
  const peers = deltaPeers();
  const ofWhole: number[] = [];
  for (const trace of await benchTraces(context)) {
    context.progress(`delta-size: ${trace.label}`);
    const epochs = contentEpochs(trace, context.quick ? 4 : 16);
    const sizes: number[] = [];
    const speeds: number[] = [];
    const others = new Map<string, { readonly sizes: number[]; readonly speeds: number[] }>();
    let at = 0;
    for await (const { storedBytes, encodeMs } of replay(epochs, LEVEL)) {
      const { before, after } = epochs[at++]!;
      sizes.push(storedBytes);
      speeds.push(gbs(after, encodeMs));
      for (const one of peerSizes(peers, before, after)) add(others, one, after);
    }
    const count = Math.round(median(epochs.map(({ contentPages }) => contentPages.length)));
    const workload = `${trace.label} (${count} pages a checkpoint)`;
    // The mean counts what a chain stores in the end: a page is stored whole now and then.
    const value = mean(sizes);
    for (const [peer, theirs] of others) {
      const isWhole = peer === 'whole pages';
      const peerValue = mean(theirs.sizes);
      if (isWhole) ofWhole.push(value / peerValue);
      const row = {
        area,
        name: 'stored per checkpoint',
        workload,
        unit: 'bytes',
        value,
        peer,
        peerValue,
      } as const;
      yield againstPeer(row, 'smaller', (ratio) => ratio < 1);
    }
    for (const [peer, theirs] of others) {
      if (peer === 'whole pages') continue;
      const name = 'speed at that size, one core';
      yield againstPeer({
        area,
        name,
        workload,
        unit: 'GB/s',
        value: median(speeds),
        peer,
        peerValue: median(theirs.speeds),
      });
    }
  }
  yield againstPeer(
    {
      area,
      name: 'stored per checkpoint, median of the workloads',
      workload: 'all traces',
      unit: '%',
      value: median(ofWhole) * 100,
      peer: 'whole pages',
      peerValue: 100,
    },
    'at least 90 % less (thesis: 52.88 % less)',
    (ratio) => ratio <= 0.1,
  );
}

function add(
  to: Map<string, { readonly sizes: number[]; readonly speeds: number[] }>,
  { peer, sizeBytes, ms }: PeerSize,
  after: Uint8Array,
): void {
  const known = to.get(peer) ?? { sizes: [], speeds: [] };
  to.set(peer, known);
  known.sizes.push(sizeBytes);
  known.speeds.push(gbs(after, ms));
}

function gbs(pages: Uint8Array, ms: number): number {
  return pages.length / ms / 1e6;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
