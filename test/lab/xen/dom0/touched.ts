/**
 * Runs in dom0: which frames of a suspended guest were written to from outside between two readings, and what kind of page each of them is.
 *
 * The kind is told from what the hypervisor knows where it says so (parameters, grant table, dirty bitmap), and else from the contents: event
 * channels leave a layout that nothing else has (struct evtchn_fifo_control_block and the event words of event_channel.h, struct vcpu_info of
 * xen.h).
 *
 * A PV guest names machine frames in its grant table and has no parameters: its start info page (struct start_info of xen.h) names the two rings, by
 * frames of its own, into which it turned them on its way into the suspend.
 */

import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import type { XenDomain } from '../../../../adapters/xen/domain/domain.js';
import { SHADOW_OP } from '../../../../adapters/xen/ffi/library.js';
import type { FrameTable } from '../../../../adapters/xen/memory/pv/frame-table.js';
import { grantedFrames, readGrantTable } from '../../../../adapters/xen/memory/shared-frames.js';

const PAGE = 4096;
const MOST_WORDS = 8;
/** HVM_PARAM_* of pages that dom0 or the hypervisor has a part in. */
const PARAM_PAGES: Readonly<Record<number, string>> = {
  1: 'xenstore ring',
  5: 'ioreq page',
  6: 'buffered ioreq page',
  17: 'console ring',
};
/** struct start_info of a 64-bit PV guest, and where the context of the suspended vCPU 0 has its frame (rdx). */
const START_INFO = { storeRing: 56, consoleRing: 72, contextBytes: 5168, inContext: 520 + 96 } as const;
/** evtchn_fifo_control_block: ready, reserved, 16 heads. */
const CONTROL_BLOCK_BYTES = 72;
/** Of an event word: pending, masked, linked, busy, and 17 bits of link. */
const EVENT_WORD_BITS = 0xf001ffff;
const EVENT_MASKED = 0x40000000;
const VCPU_INFO_BYTES = 64;
/** Offsets in it that an event changes: evtchn_upcall_pending, and evtchn_pending_sel. */
const UPCALL_BYTES: readonly number[] = [0, 8, 9, 10, 11, 12, 13, 14, 15];

export interface FrameImage {
  /** Ascending. */
  readonly frames: readonly number[];
  readonly bytes: Buffer;
  /** Of a PV guest: the machine frames behind them. */
  readonly table?: FrameTable;
}

export interface TouchedFrame {
  readonly frame: number;
  readonly kind: string;
  /** The hypervisor has set its dirty bit since the last reading of the bitmap: the next checkpoint takes it anew. */
  readonly flagged: boolean;
  readonly bytes: number;
  /** Offset of the first byte that changed, and of the last. */
  readonly from: number;
  readonly to: number;
  /** The first words that changed: `offset: before > after`, in hexadecimal. */
  readonly words: readonly string[];
}

/** @returns what finds the frames that changed, came or went while the domain was suspended, which it must still be */
export function changedSince(
  before: FrameImage,
  after: FrameImage,
): (domain: XenDomain) => readonly TouchedFrame[] {
  return (domain) => {
    const touched: TouchedFrame[] = [];
    const kindOf = knownFrames(domain, after.table);
    const flagged = flaggedFrames(domain);
    const isFlagged = (frame: number): boolean => flagged?.has(frame) === true;
    const cameOrWent = (frame: number): TouchedFrame => {
      const kind = 'came or went';
      return { frame, kind, flagged: isFlagged(frame), bytes: PAGE, from: 0, to: PAGE - 1, words: [] };
    };
    const place = new Map(before.frames.map((frame, i) => [frame, i]));
    for (const [i, frame] of after.frames.entries()) {
      const was = place.get(frame);
      place.delete(frame);
      if (was === undefined) {
        touched.push(cameOrWent(frame));
        continue;
      }
      const a = before.bytes.subarray(was * PAGE, (was + 1) * PAGE);
      const b = after.bytes.subarray(i * PAGE, (i + 1) * PAGE);
      if (a.equals(b)) continue;
      const at = [...a.keys()].filter((offset) => a[offset] !== b[offset]);
      const words = [...new Set(at.map((offset) => offset & ~3))].slice(0, MOST_WORDS).map((offset) => {
        const [was, is] = [a, b].map((page) => page.readUInt32LE(offset).toString(16));
        return `${offset.toString(16)}: ${was ?? ''} > ${is ?? ''}`;
      });
      const kind = kindOf.get(frame) ?? kindByContents(b, at);
      const flagged = isFlagged(frame);
      touched.push({ frame, kind, flagged, bytes: at.length, from: at[0]!, to: at.at(-1)!, words });
    }
    for (const frame of place.keys()) touched.push(cameOrWent(frame));
    return touched;
  };
}

export function countByKind(touched: readonly TouchedFrame[]): Readonly<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const { kind, flagged } of touched) {
    const name = flagged ? `${kind}, flagged` : kind;
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}

function knownFrames(domain: XenDomain, table: FrameTable | undefined): ReadonlyMap<number, string> {
  const known = new Map<number, string>();
  for (const { frame: named, isWritten } of grantedFrames(readGrantTable(domain))) {
    const frame = table === undefined ? named : table.guestFrameOf(named);
    if (frame === undefined) continue;
    if (isWritten) known.set(frame, 'mapped for writing');
    else if (!known.has(frame)) known.set(frame, 'granted');
  }
  const rings = table === undefined ? paramFrames(domain) : startInfoFrames(domain);
  for (const [frame, name] of rings) if (frame !== 0) known.set(frame, name);
  return known;
}

function paramFrames(domain: XenDomain): readonly (readonly [number, string])[] {
  const value = new BigUint64Array(1);
  return Object.entries(PARAM_PAGES).map(([param, name]) => {
    domain.check(domain.calls.hvmParam(domain.domid, Number(param), value), `reading HVM parameter ${param}`);
    return [Number(value[0]), name];
  });
}

function startInfoFrames(domain: XenDomain): readonly (readonly [number, string])[] {
  const { calls, domid } = domain;
  const context = Buffer.alloc(START_INFO.contextBytes);
  domain.check(calls.vcpuContext(domid, 0, context), 'reading vCPU 0');
  const machine = BigUint64Array.of(context.readBigUInt64LE(START_INFO.inContext));
  const errors = new Int32Array(1);
  const page = Buffer.alloc(PAGE);
  domain.check(calls.readPages(domid, 1, machine, errors, page), 'mapping the start info page');
  if (errors[0] !== 0) throw new Error('the start info page cannot be read');
  const frameAt = (at: number): number => Number(page.readBigUInt64LE(at));
  return [
    [frameAt(START_INFO.storeRing), 'xenstore ring'],
    [frameAt(START_INFO.consoleRing), 'console ring'],
  ];
}

/** Undefined where the hypervisor has no bitmap of the domain. */
function flaggedFrames(domain: XenDomain): DirtyBitmap | undefined {
  const frameCount = domain.frameCount();
  const bits = new Uint8Array(Math.ceil(frameCount / 64) * 8);
  const { calls, domid } = domain;
  const done = calls.logDirty(domid, SHADOW_OP.peek, frameCount, 0, bits, new Uint32Array(2));
  return done.value < 0 ? undefined : DirtyBitmap.fromBytes(frameCount, bits);
}

function kindByContents(page: Buffer, changedAt: readonly number[]): string {
  const words = Array.from({ length: PAGE / 4 }, (_, i) => page.readUInt32LE(i * 4));
  const areEvents = words.every((word) => (word & ~EVENT_WORD_BITS) === 0);
  // A guest masks all events of a new array, and opens those few that it uses.
  if (areEvents && words.filter((word) => (word & EVENT_MASKED) !== 0).length > words.length / 2) {
    return 'event array';
  }
  if (
    changedAt.at(-1)! < CONTROL_BLOCK_BYTES &&
    page.subarray(CONTROL_BLOCK_BYTES).every((byte) => byte === 0)
  ) {
    return 'event control block';
  }
  const slots = new Set(changedAt.map((at) => Math.floor(at / VCPU_INFO_BYTES)));
  if (slots.size === 1 && changedAt.every((at) => UPCALL_BYTES.includes(at % VCPU_INFO_BYTES))) {
    return 'vcpu_info';
  }
  return 'other';
}
