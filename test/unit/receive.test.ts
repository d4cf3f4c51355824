import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { captureHvmState } from '../../adapters/xen/stream/device-state.js';
import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import type { DomainMemory } from '../../adapters/xen/remus/memory-watch.js';
import { receiveRemus } from '../../adapters/xen/remus/receive-remus.js';
import { LIBXC_RECORD, LIBXL_RECORD } from '../../adapters/xen/stream/format.js';
import { encodeRecord } from '../../adapters/xen/stream/records.js';
import { writeSaveFile } from '../../adapters/xen/stream/writer.js';
import { xenHypervisor } from '../../adapters/xen/xen-hypervisor.js';
import { CheckpointError } from '../../src/errors.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { hypervisors } from '../../src/index.js';
import {
  receiveCheckpoints,
  type ReceivedCheckpoint,
  type ReceiveOptions,
} from '../../src/intake/receive.js';
import { Repository } from '../../src/repository/repository.js';
import { exportCheckpoint } from '../../src/restore/restore.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { openBackend } from '../../src/storage/open.js';
import { FakeXen } from '../support/fake-xen.js';

const PAGE = 4096;
const MAX_KIB = 1024 * 4;
const UUID = '01234567-89ab-cdef-0123-456789abcdef';
const HOLE = 16;
/** Frames with memory: pairs of first and count. */
const PRESENT = Uint32Array.of(0, HOLE, HOLE + 1, 1023 - HOLE, 0xfeff8, 8);
const WHOLE: DomainMemory = { targetKib: MAX_KIB, staticMaxKib: MAX_KIB, currentMib: MAX_KIB / 1024 };
const layout = layoutOf([
  { firstFrame: 0, frameCount: 1024 },
  { firstFrame: 0xfee00, frameCount: 512 },
]);

type Fills = ReadonlyMap<number, number>;

/** What a page is filled with, unless `fills` says something else. */
function fillOf(frame: number, fills: Fills): number {
  return fills.get(frame) ?? (frame % 7 === 0 ? 0 : 1 + (frame % 200));
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesOf(fills: Fills): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount, id } of layout.regions) {
    const firstFrame = Number.parseInt(id.slice(4), 16);
    const bytes = Buffer.alloc(pageCount * PAGE);
    for (let i = 0; i < pageCount; i++) bytes.fill(fillOf(firstFrame + i, fills), i * PAGE, (i + 1) * PAGE);
    yield { firstPage, pageCount, bytes };
  }
}

/** The records after the pages; `tick` makes those of two states differ. */
function stateOf(tick: number) {
  const xen = new FakeXen();
  const state = captureHvmState(new XenDomain(xen, xen.domid), PRESENT);
  const after = state.after.map((record) =>
    record.type === LIBXC_RECORD.tscInfo ? { ...record, body: new Uint8Array(24).fill(tick) } : record,
  );
  return { ...state, after };
}

function configOf(type: string): string {
  return JSON.stringify({ c_info: { type, name: 'web1', uuid: UUID }, b_info: { max_memkb: MAX_KIB } });
}

/** The guest at one moment, as xl save writes it: what an export must give. */
async function saveFile(fills: Fills, tick: number, type = 'pvh'): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  const content = {
    config: configOf(type),
    version: { major: 4, minor: 17 },
    state: stateOf(tick),
    layout,
  };
  for await (const part of writeSaveFile({ ...content, pages: pagesOf(fills) })) parts.push(part);
  return Buffer.concat(parts);
}

const NOTHING = new Uint8Array(0);

/** The end of each epoch: libxc hands over to libxl, and back. */
function checkpointRecords(emulator?: Uint8Array): Buffer {
  return Buffer.concat([
    encodeRecord({ type: LIBXC_RECORD.checkpoint, body: NOTHING }),
    ...(emulator === undefined ? [] : [emulatorRecord(emulator)]),
    encodeRecord({ type: LIBXL_RECORD.checkpointEnd, body: NOTHING }),
  ]);
}

function emulatorRecord(state: Uint8Array): Buffer {
  const body = Buffer.concat([Buffer.from('0200000000000000', 'hex'), state]);
  return encodeRecord({ type: LIBXL_RECORD.emulatorContext, body });
}

/** Up to the end of the first epoch. */
async function firstEpoch(tick = 1, type = 'pvh', emulator?: Uint8Array): Promise<Buffer> {
  const file = await saveFile(new Map(), tick, type);
  // Without the ends of both layers.
  return Buffer.concat([file.subarray(0, -16), checkpointRecords(emulator)]);
}

/** Pages as libxc sends them; null: memory that is not there. */
function pageRecord(pages: ReadonlyMap<number, number | null>): Buffer {
  const head = Buffer.alloc(8 + 8 * pages.size);
  head.writeUInt32LE(pages.size, 0);
  const contents: Buffer[] = [];
  [...pages].forEach(([frame, fill], i) => {
    head.writeUInt32LE(frame, 8 + 8 * i);
    head.writeUInt32LE(fill === null ? 0xf000_0000 : 0, 12 + 8 * i);
    if (fill !== null) contents.push(Buffer.alloc(PAGE, fill));
  });
  return encodeRecord({ type: LIBXC_RECORD.pageData, body: Buffer.concat([head, ...contents]) });
}

function epoch(pages: ReadonlyMap<number, number | null>, tick: number): Buffer {
  return Buffer.concat([pageRecord(pages), ...stateOf(tick).after.map(encodeRecord), checkpointRecords()]);
}

describe('receiving what xl remus sends', () => {
  let dir: string;
  let repository: Repository;
  let stream: PassThrough;
  let memory: DomainMemory | Error;
  /** Waited for whenever the guest's memory figures are read, but for the first time. */
  let figuresAreRead: Promise<void>;
  const taken: ReceivedCheckpoint[] = [];
  const failures: string[] = [];
  /** Of the backend: fails the next save of a pack. */
  let failsNextPack = false;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-receive-test-'));
    repository = await Repository.init(failing(openBackend(join(dir, 'repo'))));
    stream = new PassThrough();
    memory = WHOLE;
    figuresAreRead = Promise.resolve();
    taken.length = 0;
    failures.length = 0;
    failsNextPack = false;
  });
  afterEach(async () => {
    await repository.backend.close();
    rmSync(dir, { recursive: true, force: true });
  });

  function failing(backend: StorageBackend): StorageBackend {
    return new Proxy(backend, {
      get(target, key) {
        const value: unknown = Reflect.get(target, key);
        if (typeof value !== 'function') return value;
        return (...args: unknown[]): unknown => {
          if (key === 'save' && failsNextPack && String(args[0]).includes('pack')) {
            failsNextPack = false;
            return Promise.reject(new CheckpointError('STORAGE_FULL', 'the disk is full'));
          }
          return Reflect.apply(value, target, args);
        };
      },
    });
  }

  /** @param next what is sent after each checkpoint, and after each that failed; the stream ends when there is no more */
  async function received(
    first: Uint8Array,
    next: readonly Buffer[] = [],
    options: Partial<ReceiveOptions> = {},
  ) {
    const temp = mkdtempSync(join(dir, 'temp-'));
    const rest = [...next];
    let readCount = 0;
    const sendNext = (): void => {
      const part = rest.shift();
      if (part === undefined) stream.end();
      else stream.write(part);
    };
    if (first.length > 0) stream.write(first);
    try {
      return await receiveCheckpoints({
        repository,
        hypervisor: {
          ...xenHypervisor,
          receive: (request) =>
            receiveRemus(request, async () => {
              if (readCount++ > 0) await figuresAreRead;
              if (memory instanceof Error) throw memory;
              return memory;
            }),
        },
        stream,
        tempDir: temp,
        workers: 1,
        onCheckpoint: (checkpoint) => {
          taken.push(checkpoint);
          sendNext();
        },
        onFailure: (error) => {
          failures.push((error as CheckpointError).code);
          sendNext();
        },
        ...options,
      });
    } finally {
      expect(readdirSync(temp)).toEqual([]);
    }
  }

  async function exported(at: number): Promise<Buffer> {
    const { checkpointId } = taken[at]!;
    const path = join(dir, `${checkpointId}.out`);
    const manifest = await repository.find(checkpointId);
    await exportCheckpoint({ repository, hypervisors: hypervisors(), manifest }, { format: 'xl', path });
    return readFileSync(path);
  }

  async function expectExport(at: number, fills: Fills, tick: number): Promise<void> {
    expect((await exported(at)).equals(await saveFile(fills, tick))).toBe(true);
  }

  it('takes a checkpoint of each state, the first as a base', async () => {
    const result = await received(await firstEpoch(), [
      epoch(
        new Map([
          [3, 9],
          [7, 8],
          [0xfeff9, 5],
        ]),
        2,
      ),
      epoch(
        new Map([
          [3, 0],
          [100, 6],
        ]),
        3,
      ),
    ]);
    expect(result).toEqual({ checkpoints: 3, failed: 0 });
    expect(
      taken.map(({ kind, tracker, state, states, dirtyPages }) => [kind, tracker, state, states, dirtyPages]),
    ).toEqual([
      ['base', 'remus-stream', 1, 1, 1536],
      ['incremental', 'remus-stream', 2, 1, 3],
      ['incremental', 'remus-stream', 3, 1, 2],
    ]);
    // Of the first one nobody can tell the pause.
    expect(taken.map(({ warnings }) => warnings.length)).toEqual([1, 0, 0]);
    await expectExport(0, new Map(), 1);
    await expectExport(
      1,
      new Map([
        [3, 9],
        [7, 8],
        [0xfeff9, 5],
      ]),
      2,
    );
    await expectExport(
      2,
      new Map([
        [3, 0],
        [7, 8],
        [0xfeff9, 5],
        [100, 6],
      ]),
      3,
    );
  });

  it('merges the states that come while nothing can be stored', async () => {
    let release = (): void => undefined;
    figuresAreRead = new Promise((resolve) => (release = resolve));
    const all = [
      await firstEpoch(),
      epoch(
        new Map([
          [3, 9],
          [4, 9],
        ]),
        2,
      ),
      epoch(
        new Map([
          [3, 0],
          [5, 6],
          [7, 4],
        ]),
        3,
      ),
    ];
    await received(Buffer.concat(all), [], { onState: (state) => state === 3 && release() });
    expect(taken.map(({ kind, state, states }) => [kind, state, states])).toEqual([['base', 3, 3]]);
    await expectExport(
      0,
      new Map([
        [3, 0],
        [4, 9],
        [5, 6],
        [7, 4],
      ]),
      3,
    );
  });

  it('takes the last content of a page that came twice', async () => {
    const twice = Buffer.concat([pageRecord(new Map([[3, 9]])), epoch(new Map([[3, 5]]), 2)]);
    await received(await firstEpoch(), [twice]);
    await expectExport(1, new Map([[3, 5]]), 2);
  });

  it('leaves out a state that did not come whole', async () => {
    const cut = epoch(new Map([[3, 9]]), 2).subarray(0, -8);
    const onCheckpoint = (checkpoint: ReceivedCheckpoint): void => {
      taken.push(checkpoint);
      stream.end(cut);
    };
    expect(await received(await firstEpoch(), [], { onCheckpoint })).toEqual({ checkpoints: 1, failed: 0 });
    await expectExport(0, new Map(), 1);
  });

  it('keeps the pages of a checkpoint that could not be stored for the next one', async () => {
    const started = received(await firstEpoch(), [epoch(new Map([[3, 9]]), 2), epoch(new Map([[5, 6]]), 3)], {
      onState: (state) => (failsNextPack = state === 2),
    });
    expect(await started).toEqual({ checkpoints: 2, failed: 1 });
    expect(failures).toEqual(['STORAGE_FULL']);
    expect(taken[1]).toMatchObject({ state: 3, compareReason: '' });
    await expectExport(
      1,
      new Map([
        [3, 9],
        [5, 6],
      ]),
      3,
    );
  });

  it('keeps a state that could not be claimed for the next one', async () => {
    const result = await received(
      await firstEpoch(),
      [epoch(new Map([[3, 9]]), 2), epoch(new Map([[5, 6]]), 3)],
      {
        onState: (state) => (memory = state === 2 ? new CheckpointError('FFI_FAILED', 'no answer') : WHOLE),
      },
    );
    expect(result).toEqual({ checkpoints: 2, failed: 1 });
    expect(taken[1]).toMatchObject({ state: 3, states: 2, dirtyPages: 2 });
    await expectExport(
      1,
      new Map([
        [3, 9],
        [5, 6],
      ]),
      3,
    );
  });

  it('compares all pages when the chain goes on with another stream', async () => {
    await received(await firstEpoch());
    stream = new PassThrough();
    await received(await firstEpoch(4), [epoch(new Map([[3, 9]]), 5)]);
    expect(taken.map(({ kind }) => kind)).toEqual(['base', 'incremental', 'incremental']);
    expect(taken[1]!.compareReason).not.toBe('');
    expect(taken[2]!.compareReason).toBe('');
    await expectExport(1, new Map(), 4);
    await expectExport(2, new Map([[3, 9]]), 5);
  });

  it('ends after --count checkpoints, and lets go of the stream', async () => {
    const result = await received(await firstEpoch(), [epoch(new Map([[3, 9]]), 2)], { count: 1 });
    expect(result.checkpoints).toBe(1);
    expect(stream.destroyed).toBe(true);
  });

  it('ends when it is told to', async () => {
    const abort = new AbortController();
    const result = await received(await firstEpoch(), [], {
      signal: abort.signal,
      onCheckpoint: () => abort.abort(),
    });
    expect(result).toEqual({ checkpoints: 1, failed: 0 });
  });

  it.each(['hvm', 'pv'])('refuses a guest of type %s before its memory is sent', async (type) => {
    const first = (await firstEpoch(1, type)).subarray(0, 2000);
    await expect(received(first)).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  });

  describe('refuses a guest that balloons', () => {
    const refusal = { code: 'VM_UNSUPPORTED', detail: { hazard: 'XEN_BALLOON' } };

    it.each([
      ['whose target is below its maximum', { ...WHOLE, targetKib: MAX_KIB - 4 }],
      ['that has less than its target', { ...WHOLE, currentMib: 2 }],
      ['that has more than came in the stream', { targetKib: 16384, staticMaxKib: 16384, currentMib: 16 }],
    ])('%s', async (_, figures) => {
      memory = figures;
      await expect(received(await firstEpoch())).rejects.toMatchObject(refusal);
      await expect(repository.find('latest')).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
    });

    it.each([
      ['target', { ...WHOLE, targetKib: MAX_KIB - 512 }],
      ['current memory', { ...WHOLE, currentMib: 2 }],
    ])('later, by its %s', async (_, figures) => {
      const started = received(await firstEpoch(), [epoch(new Map([[3, 9]]), 2)], {
        onState: (state) => (memory = state === 2 ? figures : WHOLE),
      });
      await expect(started).rejects.toMatchObject(refusal);
      expect(taken.length).toBe(1);
    });

    it.each([
      ['goes away', new Map([[3, null]])],
      ['comes', new Map([[HOLE, 1]])],
      ['comes where there was no region', new Map([[0x200000, 1]])],
    ])('by memory that %s in the stream', async (_, pages) => {
      await expect(received(await firstEpoch(), [epoch(pages, 2)])).rejects.toMatchObject(refusal);
      expect(taken.length).toBe(1);
    });

    it('but not one with a hole that stays one', async () => {
      expect(await received(await firstEpoch(), [epoch(new Map([[HOLE, null]]), 2)])).toMatchObject({
        checkpoints: 2,
      });
    });
  });

  it.each([
    ['ends before its first state is whole', async () => (await firstEpoch()).subarray(0, -8)],
    ['is none', () => Promise.resolve(Buffer.from('GET / HTTP/1.1\r\n\r\n'.repeat(10)))],
    [
      'has a record that is not known',
      async () =>
        Buffer.concat([(await firstEpoch()).subarray(0, -16), encodeRecord({ type: 0x77, body: NOTHING })]),
    ],
    [
      'has a libxl record that is not known',
      async () =>
        Buffer.concat([(await firstEpoch()).subarray(0, -8), encodeRecord({ type: 0x77, body: NOTHING })]),
    ],
    ['has a state of a device model that the guest has not', () => firstEpoch(1, 'pvh', Buffer.from('QEVM'))],
  ])('takes nothing of a stream that %s', async (_, make) => {
    const first = await make();
    stream.end(first);
    await expect(received(NOTHING)).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
    await expect(repository.find('latest')).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
  });

  it('keeps what it had when a later state is malformed', async () => {
    const bad = encodeRecord({ type: LIBXC_RECORD.pageData, body: Buffer.alloc(16, 0xff) });
    await expect(received(await firstEpoch(), [bad])).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
    expect(taken.length).toBe(1);
    await expectExport(0, new Map(), 1);
  });

  it('refuses a guest of another host', async () => {
    memory = new CheckpointError('VM_UNREACHABLE', 'there is no such domain');
    await expect(received(await firstEpoch())).rejects.toMatchObject({ code: 'VM_UNREACHABLE' });
  });
});
