/** The file of `xl save` as a checkpoint. */

import type { ImportedMachine, ImportRequest } from '../../src/hypervisor/intake.js';
import { CheckpointError } from '../../src/errors.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import type { MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import { refuseHollow } from '../../src/hypervisor/sparse-memory.js';
import { parseJson } from '../../src/records/json-text.js';
import type { JsonObject } from '../../src/types.js';
import { encodeDeviceState } from './stream/device-state.js';
import { framesOf } from './memory/guest-memory.js';
import { layoutOf, pageOfFrame, windowsOver, type FrameWindow } from './domain/physmap.js';
import { EMULATOR_HEADER, GUEST_TYPE, LIBXC_RECORD, LIBXL_RECORD } from './stream/format.js';
import { readSaveFile, type SaveHead, type SaveItem } from './stream/reader.js';
import { StateRecords, type StateRecord } from './stream/records.js';
import { objectOf, textOf } from './domain/xl.js';

const PAGES_PER_KIB = 1 / 4;
/** A guest of Xen has its memory in three or four windows. A frame is looked for in one after the other. */
const MAX_WINDOWS = 256;
/** Bytes of a word, the first of the PV_INFO record. */
const PV_WIDTH_64 = 8;

/**
 * Reads the file twice: only at its end is it known which frames have memory.
 * @throws STREAM_MALFORMED, VM_UNSUPPORTED for a PV guest of 32 bits, and an HVM guest with another device
 *   model than the QEMU of today
 */
export async function importSaveFile({ open, place }: ImportRequest): Promise<ImportedMachine> {
  const before = new StateRecords();
  const after = new StateRecords();
  /**
   * Frames with memory behind them, and the type of each. A live save sends frames again; the last word
   * counts.
   */
  const frames = new Map<number, number>();
  let head: SaveHead | undefined;
  let emulator: Uint8Array | undefined;
  for await (const item of readSaveFile(open())) {
    if (item.kind === 'head') head = item.head;
    else if (item.kind === 'state') (isBeforePages(item) ? before : after).add(item.record);
    else if (item.kind === 'emulator') emulator = emulatorState(item.record);
    else if (item.kind !== 'page') continue;
    else if (item.bytes === null) frames.delete(item.frame);
    else frames.set(item.frame, item.type);
  }
  if (head === undefined || frames.size === 0) {
    throw new CheckpointError('STREAM_MALFORMED', 'the save file has no memory in it');
  }
  const config = configOf(head);
  const created = objectOf(config.c_info);
  const kind = kindOf(head, textOf(created.type), before.records);
  if ((kind === 'hvm') !== (emulator !== undefined)) {
    throw new CheckpointError(
      'STREAM_MALFORMED',
      `the save file of a guest of type "${kind}" has ${emulator === undefined ? 'no' : 'a'} state of a device model`,
    );
  }
  const layout = layoutFor([...frames.keys()], config);
  const memory = place(layout);
  const present = new DirtyBitmap(layout.pageSpan);
  for await (const item of readSaveFile(open())) {
    if (item.kind !== 'page' || item.bytes === null || !frames.has(item.frame)) continue;
    const page = pageOfFrame(layout, item.frame);
    if (page === undefined)
      throw new CheckpointError('STREAM_MALFORMED', 'the save file changed while it was read');
    memory.put(page, item.bytes);
    present.set(page);
  }
  const presentFrames = framesOf(layout, present);
  return {
    ...machineOf(head, config, kind),
    deviceState: encodeDeviceState({
      guestType: head.guestType,
      presentFrames,
      ...(kind === 'pv' ? { pageTypes: typesOf(presentFrames, frames) } : {}),
      ...(emulator === undefined ? {} : { emulator }),
      before: before.records,
      after: after.records,
    }),
  };
}

export function machineOf(
  { xenMajor, xenMinor }: SaveHead,
  config: JsonObject,
  kind: string,
): Omit<ImportedMachine, 'deviceState'> {
  const { name, uuid } = objectOf(config.c_info);
  return {
    identity: {
      hypervisor: 'xen',
      name: textOf(name),
      uuid: textOf(uuid),
      machineType: `xen-${kind}`,
    },
    machine: { config, guestKind: kind, xenMajor, xenMinor },
  };
}

/**
 * Lays out the frames that have memory behind them, and what the guest may have.
 * @throws STREAM_MALFORMED for frames that lie in more places than a guest's do, or far more memory than has come
 */
export function layoutFor(frames: readonly number[], config: JsonObject): MemoryLayout {
  const maxKib = objectOf(config.b_info).max_memkb;
  const maxPages = typeof maxKib === 'number' ? Math.ceil(maxKib * PAGES_PER_KIB) : 0;
  const windows = windowsOver(stretchesOf(frames), maxPages);
  if (windows.length > MAX_WINDOWS)
    throw new CheckpointError('STREAM_MALFORMED', 'the frames in the save file lie in too many places');
  refuseHollow(
    windows.reduce((sum, { frameCount }) => sum + frameCount, 0),
    frames.length,
  );
  return layoutOf(windows);
}

/**
 * The frames of a PV guest's own table come ahead of the pages in the stream, and with the rest in the stored
 * state.
 */
function isBeforePages({ record, before }: Extract<SaveItem, { readonly kind: 'state' }>): boolean {
  return before && record.type !== LIBXC_RECORD.pvFrames;
}

/** @throws VM_UNSUPPORTED for one that is not the whole state of a QEMU of today */
function emulatorState({ type, body }: StateRecord): Uint8Array {
  if (type !== LIBXL_RECORD.emulatorContext) throw unsupported('memory that a device model moved');
  const header = new DataView(body.buffer, body.byteOffset, Math.min(body.length, EMULATOR_HEADER.sizeBytes));
  if (body.length < EMULATOR_HEADER.sizeBytes || header.getUint32(0, true) !== EMULATOR_HEADER.qemuUpstream)
    throw unsupported('the state of another device model than QEMU');
  return body.subarray(EMULATOR_HEADER.sizeBytes);
}

export function kindOf(
  { guestType }: SaveHead,
  type: string,
  before: readonly StateRecord[],
): 'pvh' | 'hvm' | 'pv' {
  if (type !== 'pvh' && type !== 'hvm' && type !== 'pv') throw unsupported(`a guest of type "${type}"`);
  if ((type === 'pv') !== (guestType === GUEST_TYPE.pv))
    throw new CheckpointError(
      'STREAM_MALFORMED',
      'the configuration and the memory in the save file are of two guests',
    );
  if (type === 'pv' && before.find((record) => record.type === LIBXC_RECORD.pvInfo)?.body[0] !== PV_WIDTH_64)
    throw unsupported('a PV guest of 32 bits');
  return type;
}

/** Types of the frames of `presentFrames`, in order, a byte each. */
function typesOf(presentFrames: Uint32Array, frames: ReadonlyMap<number, number>): Uint8Array {
  const types: number[] = [];
  for (let i = 0; i < presentFrames.length; i += 2) {
    for (let k = 0; k < presentFrames[i + 1]!; k++) types.push(frames.get(presentFrames[i]! + k) ?? 0);
  }
  return Uint8Array.from(types);
}

export function configOf(head: SaveHead): ReturnType<typeof objectOf> {
  try {
    return objectOf(parseJson(head.config));
  } catch (cause) {
    throw new CheckpointError('STREAM_MALFORMED', 'the configuration in the save file is no JSON', { cause });
  }
}

function unsupported(what: string): CheckpointError {
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `the save file holds ${what}; only PVH guests, HVM guests with QEMU and PV guests of 64 bits can be imported`,
    {
      hint: 'restore it with xl',
    },
  );
}

function stretchesOf(frames: readonly number[]): readonly FrameWindow[] {
  const stretches: { firstFrame: number; frameCount: number }[] = [];
  for (const frame of [...frames].sort((a, b) => a - b)) {
    const last = stretches.at(-1);
    if (last !== undefined && last.firstFrame + last.frameCount === frame) last.frameCount++;
    else stretches.push({ firstFrame: frame, frameCount: 1 });
  }
  return stretches;
}
