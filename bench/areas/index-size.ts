/**
 * What the size of a memory costs whoever wants one page of it. The index is synthetic: each page of the
 * memory has an entry, in frames of 60 to 139 records and then in some increments, and only the first frame
 * is there to be read.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

import { openBackend, Repository, type Manifest } from '../../src/index.js';
import { encodeFrame } from '../../src/format/frame.js';
import { digestOf } from '../../src/format/page-digest.js';
import { makeRef } from '../../src/format/record-ref.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { CODEC_RAW } from '../../src/kernels/codec-ids.js';
import { sharedKernels } from '../../src/kernels/shared-kernels.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { seeded } from '../../test/support/seeded.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';

const REPETITIONS = 15;
const SMALL_GIB = 1;
const INCREMENTS = 20;
const CHANGED_PAGES = 4000;
const MOST_TIMES_SMALL = 1.5;
/** Frames of a pack. */
const PACK_FRAMES = 100_000;
const IDENTITY = { hypervisor: 'none', name: 'large', uuid: '', machineType: 'none', instance: '' };

interface Cost {
  readonly pageMs: number;
  readonly mapMs: number;
}

export async function* indexSizeRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const sizes = context.quick ? [16] : [16, 64];
  const small = await costOf(SMALL_GIB, context);
  for (const gib of sizes) {
    if (context.timeIsUp()) return;
    const large = await costOf(gib, context);
    const about = { area: 'chain', workload: `${gib} GiB, all pages stored`, unit: 'ms' } as const;
    const peer = `${SMALL_GIB} GiB`;
    yield againstPeer(
      {
        ...about,
        name: 'one page of a checkpoint that was just opened',
        value: large.pageMs,
        peer,
        peerValue: small.pageMs,
      },
      `at most ${MOST_TIMES_SMALL}x`,
      (ratio) => ratio <= MOST_TIMES_SMALL,
    );
    yield againstPeer({
      ...about,
      name: 'the whole map of a checkpoint, as a writer takes it',
      value: large.mapMs,
      peer,
      peerValue: small.mapMs,
    });
  }
}

async function costOf(gib: number, context: BenchContext): Promise<Cost> {
  const folder = mkdtempSync(join(tmpdir(), 'cairn-bench-index-'));
  try {
    context.progress(`index: an index of ${gib} GiB`);
    const repository = await Repository.init(openBackend(folder));
    const manifest = await write(repository, gib);
    context.progress(`index: reading a page of ${gib} GiB`);
    return {
      pageMs: await medianMs(async () => {
        await repository.reader(manifest).readPages(Uint32Array.of(7), new Uint8Array(PAGE_SIZE_BYTES));
      }),
      mapMs: await medianMs(async () => {
        await repository.loadMap(manifest);
      }),
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function medianMs(work: () => Promise<void>): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < REPETITIONS; i++) {
    const begun = performance.now();
    await work();
    times.push(performance.now() - begun);
  }
  return median(times);
}

/** @returns the newest checkpoint */
async function write(repository: Repository, gib: number): Promise<Manifest> {
  const layout = layOut([{ id: 'pc.ram', sizeBytes: gib * 2 ** 30 }]);
  const random = seeded(1);
  const map = new PageMap(layout.pageSpan);
  const chain = await repository.openChainWriter('large', IDENTITY);
  const fields = { identity: IDENTITY, machine: {}, disks: [], stats: {} };
  try {
    const base = await chain.begin({ kind: 'base', parent: null, layout, map });
    const real = firstFrame();
    await base.appendFrame(real);
    for (let page = real.pages.length, frame = 0; page < layout.pageSpan; frame++) {
      const end = Math.min(layout.pageSpan, page + 60 + random(80));
      const pack = 2 + Math.floor(frame / PACK_FRAMES);
      for (let record = 0; page < end; record++, page++)
        map.set(page, makeRef(pack, frame % PACK_FRAMES, record), 0);
    }
    let manifest = await base.commit(fields);
    for (let n = 0; n < INCREMENTS; n++) {
      const increment = await chain.begin({ kind: 'incremental', parent: manifest, layout, map });
      for (let i = 0; i < CHANGED_PAGES; i++)
        map.set(
          real.pages.length + random(layout.pageSpan - real.pages.length),
          makeRef(1000 + n, i >>> 7, i & 127),
          1,
        );
      manifest = await increment.commit(fields);
    }
    return manifest;
  } finally {
    await chain.close();
  }
}

/** Eight pages, each of its own number. */
function firstFrame(): ReturnType<typeof encodeFrame> {
  const count = 8;
  const data = new Uint8Array(count * PAGE_SIZE_BYTES);
  for (let page = 0; page < count; page++)
    data.fill(page + 1, page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES);
  return encodeFrame(
    {
      pages: Uint32Array.from({ length: count }, (_, page) => page),
      codecs: new Uint8Array(count).fill(CODEC_RAW),
      controlLengths: new Uint16Array(count),
      dataLengths: new Uint16Array(count).fill(PAGE_SIZE_BYTES),
      baseRefs: new Float64Array(count),
      depths: new Uint8Array(count),
      control: new Uint8Array(0),
      data,
      digest: digestOf(sharedKernels(), data),
    },
    3,
  );
}
