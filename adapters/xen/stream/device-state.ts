/**
 * What besides memory makes up a suspended guest, as the repository stores it: libxc's own state records, and
 * the frames that had memory behind them. "CairnXen", u32 version, u32 guest type, then records.
 *
 * The repository keeps an absent page and a page of zeros alike; the frame list is what keeps a ballooned
 * guest from coming back with more memory than it had.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { XenDomain } from '../domain/domain.js';
import { GUEST_TYPE, LIBXC_RECORD, type GuestType } from './format.js';
import { decodeRecords, encodeRecord, type StateRecord } from './records.js';

const MAGIC = Buffer.from('CairnXen', 'latin1');
const VERSION = 1;
const HEADER_BYTES = 16;
/** Ours, outside of libxc's numbers: u32 pairs (first frame, count), ascending. */
const PRESENT_FRAMES = 0x4341_0001;

/**
 * libxc's order (tools/libs/guest/xg_sr_save_x86_hvm.c): HVM_PARAM_* numbers of params.h; those that are 0
 * are left out.
 */
export const SAVED_PARAMS: readonly number[] = [1, 5, 6, 27, 28, 29, 37, 17, 19, 9, 12, 34, 32, 33, 36, 38];

/** Ours: for a PV guest, one byte for each present frame. */
const PAGE_TYPES = 0x4341_0002;

/**
 * Ours: the state of the QEMU of an HVM guest. 0x43410003 is kept for its nodes in xenstore, which no guest
 * that is taken has.
 */
const EMULATOR_STATE = 0x4341_0004;
const OWN_RECORDS: readonly number[] = [PRESENT_FRAMES, PAGE_TYPES, EMULATOR_STATE];

const LEAF_BYTES = 24;
const MSR_BYTES = 16;

export interface XenDeviceState {
  readonly guestType: GuestType;
  /** u32 pairs (first frame, count), ascending. */
  readonly presentFrames: Uint32Array;
  /** Type of each present frame of a PV guest, in order. A translated guest has none: all are 0. */
  readonly pageTypes?: Uint8Array;
  /** State of the devices of a guest with a device model, as QEMU serialises it. */
  readonly emulator?: Uint8Array;
  /**
   * Records in the order in which the stream needs them: those before the pages here, those after them below.
   */
  readonly before: readonly StateRecord[];
  readonly after: readonly StateRecord[];
}

/** Captures the state of a suspended HVM or PVH guest, without a device model. @throws VM_GONE, FFI_FAILED */
export function captureHvmState(domain: XenDomain, presentFrames: Uint32Array): XenDeviceState {
  return {
    guestType: GUEST_TYPE.hvm,
    presentFrames,
    before: policyRecords(domain),
    after: [tscRecord(domain), contextRecord(domain), paramsRecord(domain)],
  };
}

export function encodeDeviceState(state: XenDeviceState): Uint8Array {
  const header = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(header);
  header.writeUInt32LE(VERSION, 8);
  header.writeUInt32LE(state.guestType, 12);
  const frames = Buffer.alloc(state.presentFrames.length * 4);
  state.presentFrames.forEach((value, i) => frames.writeUInt32LE(value, i * 4));
  const marker: StateRecord = { type: LIBXC_RECORD.staticDataEnd, body: new Uint8Array(0) };
  const types = state.pageTypes === undefined ? [] : [{ type: PAGE_TYPES, body: state.pageTypes }];
  const emulator = state.emulator === undefined ? [] : [{ type: EMULATOR_STATE, body: state.emulator }];
  const records = [
    { type: PRESENT_FRAMES, body: frames },
    ...types,
    ...emulator,
    ...state.before,
    marker,
    ...state.after,
  ];
  return Buffer.concat([header, ...records.map(encodeRecord)]);
}

/** @throws STREAM_MALFORMED */
export function decodeDeviceState(bytes: Uint8Array): XenDeviceState {
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, HEADER_BYTES));
  if (bytes.length < HEADER_BYTES || !header.subarray(0, 8).equals(MAGIC))
    throw malformed('it is none of a Xen guest');
  if (header.readUInt32LE(8) !== VERSION) throw malformed(`version ${header.readUInt32LE(8)}`);
  const guestType = header.readUInt32LE(12);
  if (guestType !== GUEST_TYPE.pv && guestType !== GUEST_TYPE.hvm) throw malformed(`guest type ${guestType}`);
  const records = decodeRecords(bytes.subarray(HEADER_BYTES));
  const frames = records.find(({ type }) => type === PRESENT_FRAMES)?.body;
  const split = records.findIndex(({ type }) => type === LIBXC_RECORD.staticDataEnd);
  if (frames === undefined || frames.length % 8 !== 0) throw malformed('its list of frames is missing');
  if (split < 0) throw malformed('its static records have no end');
  const pageTypes = records.find(({ type }) => type === PAGE_TYPES)?.body;
  const emulator = records.find(({ type }) => type === EMULATOR_STATE)?.body;
  const isLibxc = ({ type }: StateRecord): boolean => !OWN_RECORDS.includes(type);
  const view = new DataView(frames.buffer, frames.byteOffset, frames.byteLength);
  return {
    guestType,
    presentFrames: Uint32Array.from({ length: frames.length / 4 }, (_, i) => view.getUint32(i * 4, true)),
    ...(pageTypes === undefined ? {} : { pageTypes }),
    ...(emulator === undefined ? {} : { emulator }),
    before: records.slice(0, split).filter(isLibxc),
    after: records.slice(split + 1).filter(isLibxc),
  };
}

export function policyRecords(domain: XenDomain): readonly StateRecord[] {
  const { calls, domid } = domain;
  const leafCount = new Uint32Array(1);
  const msrCount = new Uint32Array(1);
  domain.check(calls.cpuPolicySize(leafCount, msrCount), 'asking for the size of the CPU policy');
  const leaves = new Uint8Array(leafCount[0]! * LEAF_BYTES);
  const msrs = new Uint8Array(msrCount[0]! * MSR_BYTES);
  domain.check(calls.cpuPolicy(domid, leaves, leafCount, msrs, msrCount), 'reading the CPU policy');
  return [
    { type: LIBXC_RECORD.cpuidPolicy, body: leaves.subarray(0, leafCount[0]! * LEAF_BYTES) },
    { type: LIBXC_RECORD.msrPolicy, body: msrs.subarray(0, msrCount[0]! * MSR_BYTES) },
  ];
}

/** struct xc_sr_rec_x86_tsc_info: mode, kHz, elapsed ns, incarnation, reserved. */
export function tscRecord(domain: XenDomain): StateRecord {
  const mode = new Uint32Array(1);
  const elapsedNs = new BigUint64Array(1);
  const khz = new Uint32Array(1);
  const incarnation = new Uint32Array(1);
  domain.check(
    domain.calls.tscInfo(domain.domid, mode, elapsedNs, khz, incarnation),
    'reading the time stamp counter',
  );
  const body = Buffer.alloc(24);
  body.writeUInt32LE(mode[0]!, 0);
  body.writeUInt32LE(khz[0]!, 4);
  body.writeBigUInt64LE(elapsedNs[0]!, 8);
  body.writeUInt32LE(incarnation[0]!, 16);
  return { type: LIBXC_RECORD.tscInfo, body };
}

function contextRecord(domain: XenDomain): StateRecord {
  const { calls, domid } = domain;
  const size = domain.check(calls.hvmContext(domid, null), 'asking for the size of the CPU context').value;
  const body = new Uint8Array(size);
  const got = domain.check(calls.hvmContext(domid, body), 'reading the CPU context').value;
  return { type: LIBXC_RECORD.hvmContext, body: body.subarray(0, got) };
}

/** struct xc_sr_rec_hvm_params: count, reserved, then u64 pairs (index, value). */
function paramsRecord(domain: XenDomain): StateRecord {
  const value = new BigUint64Array(1);
  const found: (readonly [number, bigint])[] = [];
  for (const index of SAVED_PARAMS) {
    domain.check(domain.calls.hvmParam(domain.domid, index, value), `reading HVM parameter ${index}`);
    if (value[0] !== 0n) found.push([index, value[0]!]);
  }
  const body = Buffer.alloc(8 + 16 * found.length);
  body.writeUInt32LE(found.length, 0);
  found.forEach(([index, content], i) => {
    body.writeBigUInt64LE(BigInt(index), 8 + 16 * i);
    body.writeBigUInt64LE(content, 16 + 16 * i);
  });
  return { type: LIBXC_RECORD.hvmParams, body };
}

function malformed(why: string): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `the device state cannot be used: ${why}`);
}
