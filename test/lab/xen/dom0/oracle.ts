/**
 * Runs in dom0: what the guest's memory really was at a checkpoint, against what the repository has.
 *
 * The truth is taken while the guest is suspended, twice: right after it has suspended itself and right before it is resumed. Each time it is every frame of
 * the whole frame space that has memory behind it, with no look at bitmap, regions or tracker. Pages that are not the same both
 * times were written to from outside while the guest stood still, and no copy of them is more right than another: they are counted
 * as touched. All others must be in the checkpoint as they are. The oracle makes sure that there are some: it has xenstored write to
 * its ring and raise an event.
 */

import { execFileSync } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Hypervisor } from '../../../../src/hypervisor/hypervisor.js';
import type { PauseRequest } from '../../../../src/hypervisor/run-state.js';
import { HypervisorRegistry } from '../../../../src/hypervisor/registry.js';
import type { CheckpointSource } from '../../../../src/hypervisor/restore.js';
import { regionOfPage } from '../../../../src/hypervisor/memory-layout.js';
import { XenDomain } from '../../../../adapters/xen/domain/domain.js';
import { decodeDeviceState } from '../../../../adapters/xen/stream/device-state.js';
import { bindXen } from '../../../../adapters/xen/ffi/bind.js';
import { MAX_BATCH_PAGES } from '../../../../adapters/xen/ffi/library.js';
import { xenVersion } from '../../../../adapters/xen/domain/host.js';
import type { FrameTable } from '../../../../adapters/xen/memory/pv/frame-table.js';
import { PvMemory } from '../../../../adapters/xen/memory/pv/pv-memory.js';
import { firstFrameOf } from '../../../../adapters/xen/domain/physmap.js';
import { framesSharedForWriting } from '../../../../adapters/xen/memory/shared-frames.js';
import { xenHypervisor } from '../../../../adapters/xen/xen-hypervisor.js';

import { instead } from '../../support/instead.js';
import { changedSince, countByKind, type FrameImage, type TouchedFrame } from './touched.js';
import type { XenGuest } from './xen-guest.js';

const PAGE = 4096;
/** Long enough for xenstored and the backends to act. */
const STIR_MS = 300;
/** First touching so much memory takes longer than reading the guest into it, so it is kept. */
const images = { before: Buffer.alloc(0), after: Buffer.alloc(0) };

export interface Truth {
  /** Ascending. */
  readonly frames: readonly number[];
  readonly bytes: Buffer;
  /** Frames that changed, came or went while the guest was suspended. */
  readonly touched: readonly TouchedFrame[];
  /** Frames that somebody outside could write to when the guest had suspended itself. */
  readonly shared: readonly number[];
  readonly totalPages: number;
  /** Of a PV guest: what is behind its frames. */
  readonly table?: FrameTable;
  /** The last tick that the guest had printed. */
  readonly tick: number;
  readonly readMs: number;
}

export interface OracleResult {
  readonly pages: number;
  /** Without those that were touched from outside. */
  readonly differing: number;
  /** The first of them, by frame. */
  readonly differingFrames: readonly number[];
  readonly touched: readonly TouchedFrame[];
  readonly touchedKinds: Readonly<Record<string, number>>;
  /** How many of the touched ones are in Cairn's own list of frames that are shared for writing. */
  readonly touchedShared: number;
  readonly sharedFrames: number;
  readonly missing: number;
  readonly surplus: number;
}

/** Xen, with the truth read between the last copy and the resume of each checkpoint. */
export class WatchedXen {
  readonly registry: HypervisorRegistry;
  truth: Truth | undefined;

  constructor(guest: XenGuest) {
    const watched: Hypervisor = {
      ...xenHypervisor,
      attach: async (address, options) => {
        const vm = await xenHypervisor.attach(address, options);
        const { runState } = vm;
        let before: Memory | undefined;
        let readMs = 0;
        let shared: readonly number[] = [];
        const pause = async (request?: PauseRequest): Promise<boolean> => {
          const stopped = await runState.pause(request);
          const started = performance.now();
          before = readMemory(guest.domid, 'before');
          shared = before.table === undefined ? withDomain(guest.domid, framesSharedForWriting) : [];
          readMs = performance.now() - started;
          return stopped;
        };
        const resume = async (): Promise<void> => {
          const started = performance.now();
          await stir(guest.domid);
          const memory = readMemory(guest.domid, 'after');
          const touched = before === undefined ? [] : withDomain(guest.domid, changedSince(before, memory));
          before = undefined;
          readMs += performance.now() - started;
          this.truth = { ...memory, touched, shared, tick: guest.lastTick(), readMs };
          await runState.resume();
        };
        return instead(vm, { runState: instead(runState, { pause, resume }) });
      },
    };
    this.registry = new HypervisorRegistry([watched]);
  }
}

interface Memory extends FrameImage {
  readonly totalPages: number;
}

/** Fires a watch of the guest: xenstored puts an event into the ring that it shares with it. The value stays the same. */
async function stir(domid: number): Promise<void> {
  const node = `/local/domain/${domid}/memory/target`;
  const value = execFileSync('xenstore-read', [node], { encoding: 'latin1' }).trim();
  execFileSync('xenstore-write', [node, value]);
  await sleep(STIR_MS);
}

export function withDomain<T>(domid: number, use: (domain: XenDomain) => T): T {
  const calls = bindXen(xenVersion());
  try {
    return use(new XenDomain(calls, domid));
  } finally {
    calls.close();
  }
}

/** Valid until the next reading into the same image. */
export function readMemory(domid: number, image: keyof typeof images): Memory {
  return withDomain(domid, (domain) => {
    const table = domain.info().isHvm ? undefined : new PvMemory(domain).load().table;
    const frames: number[] = [];
    if (table === undefined) {
      domain.visitPresent(0, domain.frameCount(), (first, count) => {
        for (let i = 0; i < count; i++) frames.push(first + i);
      });
    } else {
      for (let frame = 0; frame < table.frameCount; frame++) if (table.isPresent(frame)) frames.push(frame);
    }
    const sizeBytes = frames.length * PAGE;
    if (images[image].length < sizeBytes) images[image] = Buffer.alloc(sizeBytes);
    const bytes = images[image].subarray(0, sizeBytes);
    const batch = new BigUint64Array(MAX_BATCH_PAGES);
    const errors = new Int32Array(MAX_BATCH_PAGES);
    for (let at = 0; at < frames.length; at += MAX_BATCH_PAGES) {
      const part = frames.slice(at, at + MAX_BATCH_PAGES);
      part.forEach((frame, i) => (batch[i] = BigInt(table?.machineFrames[frame] ?? frame)));
      errors.fill(0);
      domain.calls.readPages(
        domid,
        part.length,
        batch,
        errors,
        bytes.subarray(at * PAGE, (at + part.length) * PAGE),
      );
      if (errors.some((error) => error !== 0)) throw new Error('the truth could not be read');
    }
    const found = { frames, bytes, totalPages: domain.info().totalPages };
    return table === undefined ? found : { ...found, table };
  });
}

/**
 * The same page as the stored one? Stored page tables hold the guest's own frame numbers: they are turned back into those of the machine. What the
 * hypervisor keeps in slots of its own of the top level is not the guest's.
 */
function isSame(stored: Uint8Array, truth: Buffer, frame: number, table: FrameTable | undefined): boolean {
  const level = table === undefined ? 0 : table.types[frame]! & 7;
  if (table === undefined || level === 0) return Buffer.compare(truth, stored) === 0;
  const kept = Buffer.from(stored);
  for (let slot = 0; slot < 512; slot++) {
    if (level === 4 && slot >= 256 && slot < 272) continue;
    let entry = kept.readBigUInt64LE(slot * 8);
    if ((entry & 1n) === 1n) {
      const machine = table.machineFrames[Number((entry >> 12n) & 0xffffffffffn)]!;
      entry = (entry & 0xfff0000000000fffn) | (BigInt(machine) << 12n);
    }
    if (entry !== truth.readBigUInt64LE(slot * 8)) return false;
  }
  return true;
}

/** Every page of the truth against the repository, and every frame the checkpoint lists against the truth. */
export async function compareWithTruth(source: CheckpointSource, truth: Truth): Promise<OracleResult> {
  const place = new Map(truth.frames.map((frame, i) => [frame, i]));
  const seen = new Set<number>();
  const differingFrames: number[] = [];
  const isTouched = new Set(truth.touched.map(({ frame }) => frame));
  const zero = Buffer.alloc(PAGE);
  for await (const chunk of source.pages()) {
    for (let i = 0; i < chunk.pageCount; i++) {
      const page = chunk.firstPage + i;
      const region = regionOfPage(source.layout, page);
      if (region === undefined) continue;
      const frame = firstFrameOf(region) + page - region.firstPage;
      const at = place.get(frame);
      if (at === undefined) continue;
      seen.add(frame);
      const stored = chunk.bytes === null ? zero : chunk.bytes.subarray(i * PAGE, (i + 1) * PAGE);
      if (isTouched.has(frame)) continue;
      if (!isSame(stored, truth.bytes.subarray(at * PAGE, (at + 1) * PAGE), frame, truth.table))
        differingFrames.push(frame);
    }
  }
  const { presentFrames } = decodeDeviceState(await source.deviceState());
  let listed = 0;
  let surplus = 0;
  for (let i = 0; i < presentFrames.length; i += 2) {
    for (let k = 0; k < presentFrames[i + 1]!; k++) {
      listed++;
      if (!place.has(presentFrames[i]! + k)) surplus++;
    }
  }
  const missing = truth.frames.length - seen.size + (truth.frames.length - (listed - surplus));
  return {
    pages: truth.frames.length,
    differing: differingFrames.length,
    differingFrames: differingFrames.slice(0, 16),
    touched: truth.touched,
    touchedKinds: countByKind(truth.touched),
    touchedShared: truth.touched.filter(({ frame }) => truth.shared.includes(frame)).length,
    sharedFrames: truth.shared.length,
    missing,
    surplus,
  };
}
