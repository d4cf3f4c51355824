/** A made-up VM: memory that tests change as they like, and its way into a repository without workers or a hypervisor. */

import { CODEC_RUNS } from '../../src/kernels/codec-ids.js';
import { PageCodec } from '../../src/kernels/page-codec.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import type { VmIdentity } from '../../src/hypervisor/vm.js';
import { createWasmKernels } from '../../src/kernels/wasm.js';
import type { BeginOptions, ChainWriter } from '../../src/repository/chain-writer.js';
import type { CheckpointWriter } from '../../src/repository/write/checkpoint-writer.js';
import { encodeFrame, type EncodedFrame } from '../../src/format/frame.js';
import type { Manifest } from '../../src/format/manifest.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { encodePatchFrame } from '../../src/format/patch-frame.js';
import { MAX_DELTA_DEPTH } from '../../src/format/record-ref.js';
import type { Repository } from '../../src/repository/repository.js';
import { digestOf } from '../../src/format/page-digest.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { seeded } from '../support/seeded.js';
import { columnsOf } from '../support/map-columns.js';

export { seeded } from '../support/seeded.js';

export const IDENTITY: VmIdentity = {
  hypervisor: 'kvm',
  name: 'web1',
  uuid: '5e1f0c1e-0000-4000-8000-000000000001',
  machineType: 'pc-i440fx-7.2',
  instance: '4711-1',
};

/** Two regions with a gap between them. */
export const LAYOUT = layOut([
  { id: 'pc.ram', sizeBytes: 300 * PAGE_SIZE_BYTES },
  { id: 'vga.vram', sizeBytes: 20 * PAGE_SIZE_BYTES },
]);

const ZERO_PAGE = Buffer.alloc(PAGE_SIZE_BYTES);

function countDifferent(a: Uint8Array, b: Uint8Array): number {
  let count = 0;
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) count++;
  return count;
}

const codec = new PageCodec(createWasmKernels());
const kernels = createWasmKernels();

export class ModelVm {
  /** The flat space, gaps included (always zero). */
  memory: Uint8Array;
  /** What the last committed checkpoint holds. */
  committed: Uint8Array;
  deviceState: Uint8Array = new Uint8Array(0);
  /** Patch frames have some. */
  hasSources = true;
  readonly #random: (bound: number) => number;

  constructor(
    public layout: MemoryLayout = LAYOUT,
    seed = 1,
  ) {
    this.memory = new Uint8Array(layout.pageSpan * PAGE_SIZE_BYTES);
    this.committed = this.memory.slice();
    this.#random = seeded(seed);
  }

  page(page: number, of = this.memory): Uint8Array {
    return of.subarray(page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES);
  }

  /** A page of the layout at random. */
  anyPage(): number {
    const region = this.layout.regions[this.#random(this.layout.regions.length)]!;
    return region.firstPage + this.#random(region.pageCount);
  }

  /** Writes a few bytes, fills or clears whole pages, moves content from one page to another. */
  scribble(pageCount: number): void {
    for (let i = 0; i < pageCount; i++) {
      const page = this.page(this.anyPage());
      const what = this.#random(10);
      if (what === 0) page.fill(0);
      else if (what === 2) page.set(this.page(this.anyPage(), this.committed).subarray(0, -512), 512);
      else if (what === 1) for (let at = 0; at < page.length; at++) page[at] = this.#random(256);
      else for (let n = 0; n <= what; n++) page[this.#random(PAGE_SIZE_BYTES)] = this.#random(256);
    }
    this.deviceState = new Uint8Array(1 + this.#random(5000));
    for (let at = 0; at < this.deviceState.length; at++) this.deviceState[at] = this.#random(4);
  }

  /** All pages that differ from what is committed, ascending. */
  dirtyPages(): Uint32Array {
    const pages: number[] = [];
    for (let page = 0; page < this.layout.pageSpan; page++) {
      if (Buffer.compare(this.page(page), this.page(page, this.committed)) !== 0) pages.push(page);
    }
    return Uint32Array.from(pages);
  }

  /**
   * Writes the differences from `before` as records on top of the map's present ones.
   * @param recordsPerFrame small, to have many frames
   */
  async write(
    writer: CheckpointWriter,
    map: PageMap,
    pages: Uint32Array,
    before: Uint8Array,
    recordsPerFrame = 7,
  ): Promise<void> {
    const zero = pages.filter((page) => ZERO_PAGE.equals(this.page(page)));
    const patched = this.#patchable(pages, map, before).filter((page) => !zero.includes(page));
    const others = pages.filter((page) => !zero.includes(page) && !patched.includes(page));
    if (patched.length > 0) {
      // All of the pages with a record could be sources; some must do.
      const sources = columnsOf(map)
        .refs.reduce<number[]>(
          (all, ref, page) => (ref === 0 || map.depthOf(page) > 7 ? all : [...all, page]),
          [],
        )
        .filter((page, i) => this.hasSources && (patched.includes(page) || i % 5 === 0));
      await writer.appendFrame(this.encodePatch(patched, Uint32Array.from(sources), map, before));
    }
    for (let from = 0; from < others.length; from += recordsPerFrame) {
      const some = others.subarray(from, from + recordsPerFrame);
      await writer.appendFrame(this.encode(some, map, before));
    }
    writer.markZero(zero);
  }

  /** Pages that have a record and changed in many places. */
  #patchable(pages: Uint32Array, map: PageMap, before: Uint8Array): Uint32Array {
    return pages.filter((page) => {
      const changed = countDifferent(this.page(page), this.page(page, before));
      return changed > 1000 && map.refOf(page) !== 0 && map.depthOf(page) < MAX_DELTA_DEPTH;
    });
  }

  encode(pages: Uint32Array, map: PageMap, before: Uint8Array): EncodedFrame {
    const records = [...pages].map((page) => {
      const isDeep = map.depthOf(page) >= MAX_DELTA_DEPTH;
      const record = codec.encode(this.page(page), isDeep ? undefined : this.page(page, before));
      return { record, baseRef: record.codec === CODEC_RUNS ? map.refOf(page) : 0 };
    });
    const contents = Buffer.concat([...pages].map((page) => this.page(page)));
    return encodeFrame(
      {
        pages,
        codecs: Uint8Array.from(records, ({ record }) => record.codec),
        controlLengths: Uint16Array.from(records, ({ record }) => record.control.length),
        dataLengths: Uint16Array.from(records, ({ record }) => record.data.length),
        baseRefs: Float64Array.from(records, ({ baseRef }) => baseRef),
        depths: Uint8Array.from(pages, (page, i) => (records[i]!.baseRef === 0 ? 0 : map.depthOf(page) + 1)),
        control: Buffer.concat(records.map(({ record }) => record.control)),
        data: Buffer.concat(records.map(({ record }) => record.data)),
        digest: digestOf(kernels, contents),
      },
      3,
    );
  }

  /** The pages as patches against the present records of `sources`, whose committed contents are in `before`. */
  encodePatch(pages: Uint32Array, sources: Uint32Array, map: PageMap, before: Uint8Array): EncodedFrame {
    const inOrder = [...sources].sort((a, b) => map.refOf(a) - map.refOf(b));
    const contents = Buffer.concat([...pages].map((page) => this.page(page)));
    return encodePatchFrame(
      {
        pages,
        contents,
        sources: Float64Array.from(inOrder, (page) => map.refOf(page)),
        prefix: Buffer.concat(inOrder.map((page) => this.page(page, before))),
        depth: inOrder.reduce((most, page) => Math.max(most, map.depthOf(page) + 1), 0),
        digest: digestOf(kernels, contents),
      },
      3,
    );
  }

  /** One whole checkpoint of everything that changed. */
  async checkpoint(chain: ChainWriter, more: Partial<BeginOptions> = {}): Promise<Manifest> {
    const parent = more.parent === undefined ? chain.latest : more.parent;
    const map = more.map ?? (await this.mapOf(chain, parent));
    const writer = await chain.begin({
      kind: parent === null ? 'base' : 'incremental',
      layout: this.layout,
      ...more,
      parent,
      map,
    });
    try {
      await this.write(writer, map, this.dirtyPages(), this.committed);
      await writer.setDeviceState(this.deviceState);
      const manifest = await writer.commit(commitFields());
      this.committed = this.memory.slice();
      return manifest;
    } catch (error) {
      await writer.abort();
      throw error;
    }
  }

  async mapOf(chain: ChainWriter, parent: Manifest | null): Promise<PageMap> {
    if (parent === null) return new PageMap(this.layout.pageSpan);
    return (await chain.loadMap(parent)).remap(parent.layout, this.layout);
  }

  /** What has to come back later on. */
  snapshot(manifest: Manifest): Expected {
    return {
      id: manifest.id,
      memory: this.memory.slice(),
      deviceState: this.deviceState.slice(),
      layout: this.layout,
    };
  }
}

export interface Expected {
  readonly id: string;
  readonly memory: Uint8Array;
  readonly deviceState: Uint8Array;
  readonly layout: MemoryLayout;
}

export function commitFields(): Parameters<CheckpointWriter['commit']>[0] {
  return {
    identity: IDENTITY,
    machine: { argv: ['-m', '1G'] },
    disks: [
      {
        diskId: 'drive0',
        path: '/srv/web1.qcow2',
        driver: 'internal',
        data: { snapshotName: 'cairn-1', overlayPath: '' },
      },
    ],
    stats: { pauseMs: 3.5 },
    runState: 'running',
  };
}

/** Memory of a checkpoint as `pages()` gives it, in one piece; also checks what that promises of its chunks. */
export async function readBack(
  repository: Repository,
  manifest: Manifest,
): Promise<{ readonly memory: Uint8Array; readonly deviceState: Uint8Array }> {
  const reader = repository.reader(manifest);
  const memory = new Uint8Array(manifest.layout.pageSpan * PAGE_SIZE_BYTES);
  const expected = manifest.layout.regions.map(
    ({ firstPage, pageCount }) => [firstPage, firstPage + pageCount] as const,
  );
  let region = 0;
  let next = expected[0]![0];
  for await (const { firstPage, pageCount, bytes } of reader.pages()) {
    if (next === expected[region]![1]) next = expected[++region]![0];
    if (firstPage !== next || pageCount < 1 || pageCount > 256)
      throw new Error(`chunk at ${firstPage}, expected ${next}`);
    if (bytes !== null && bytes.length !== pageCount * PAGE_SIZE_BYTES)
      throw new Error('chunk of a wrong length');
    if (bytes !== null) memory.set(bytes, firstPage * PAGE_SIZE_BYTES);
    next += pageCount;
  }
  if (region !== expected.length - 1 || next !== expected[region]![1]) throw new Error('pages are missing');
  return { memory, deviceState: await reader.deviceState() };
}

/** Throws unless the checkpoint reads back as it was. */
export async function mustReadBack(repository: Repository, expected: Expected): Promise<void> {
  const manifest = await repository.find(expected.id);
  const { memory, deviceState } = await readBack(repository, manifest);
  if (Buffer.compare(memory, expected.memory) !== 0) throw new Error(`memory of ${expected.id} differs`);
  if (Buffer.compare(deviceState, expected.deviceState) !== 0)
    throw new Error(`device state of ${expected.id} differs`);
}
