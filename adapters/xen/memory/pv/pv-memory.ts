/**
 * Memory and state of a suspended PV guest (64-bit).
 *
 * The guest keeps the table from its frames to machine frames (P2M) in its own memory; where, it says in the
 * shared info page. Only while it is suspended are that table and its page tables consistent, so everything
 * is read then.
 *
 * Sources: xen/include/public/arch-x86/xen.h (arch_shared_info, vcpu_guest_context),
 * docs/specs/libxc-migration-stream.pandoc.
 */

import { CheckpointError } from '../../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import type { XenDeviceState } from '../../stream/device-state.js';
import { policyRecords, tscRecord } from '../../stream/device-state.js';
import type { XenDomain } from '../../domain/domain.js';
import { MAX_BATCH_PAGES } from '../../ffi/library.js';
import { GUEST_TYPE, LIBXC_RECORD } from '../../stream/format.js';
import type { StateRecord } from '../../stream/records.js';
import { FrameTable, NO_FRAME } from './frame-table.js';

/** struct arch_shared_info in the shared info page of a 64-bit guest. */
const SHARED_INFO = { maxFrame: 3088, p2mRoot: 3088 + 24, p2mAddress: 3088 + 32 } as const;
/** Bits 12 to 51 of a page table entry. */
const ENTRY_FRAME_MASK = 0x000f_ffff_ffff_f000n;
const ENTRIES_PER_PAGE = 512;
const TYPE_SHIFT = 28;
const TYPE_MASK = 15;
const WIDTH_64 = 8;
const LEVELS_64 = 4;

/** vcpu_guest_context_t of x86-64: offsets of what holds machine frames. */
const CONTEXT = {
  sizeBytes: 5168,
  rdx: 520 + 96,
  gdtFrames: 4832,
  gdtEntries: 4960,
  controls: 4984,
} as const;
/** struct xen_domctl: command, then the union at 16. */
const DOMCTL = { sizeBytes: 144, vcpuInfo: 14, extendedContext: 43, extendedState: 63, msrs: 72 } as const;
/** struct xen_domctl_getvcpuinfo */
const VCPU_ONLINE = 20;
const MSR_BYTES = 16;

interface P2m {
  readonly table: FrameTable;
  /** Machine frames of the pages that hold the P2M itself. */
  readonly leaves: readonly number[];
}

export class PvMemory {
  readonly #domain: XenDomain;

  constructor(domain: XenDomain) {
    this.#domain = domain;
  }

  /** @throws VM_UNSUPPORTED for a 32-bit guest or a kernel without a linear P2M, VM_MEMORY_READ, VM_GONE */
  load(): P2m {
    const width = new Uint32Array(1);
    const domain = this.#domain;
    domain.check(domain.calls.guestWidth(domain.domid, width), 'asking for the width');
    if (width[0] !== WIDTH_64) throw unsupported('32-bit PV guests are not supported');
    const shared = this.#read([Number(domain.info().sharedInfoFrame)]);
    const frameCount = Number(shared.readBigUInt64LE(SHARED_INFO.maxFrame));
    const root = shared.readBigUInt64LE(SHARED_INFO.p2mRoot);
    const address = shared.readBigUInt64LE(SHARED_INFO.p2mAddress);
    if (root === 0n)
      throw unsupported('the kernel of the guest has no linear P2M (Linux 4.2 and later have)');
    const leaves = this.#walk(root >> 12n, address, Math.ceil(frameCount / ENTRIES_PER_PAGE));
    const entries = this.#read(leaves);
    const machineFrames = new Uint32Array(frameCount);
    for (let frame = 0; frame < frameCount; frame++) {
      const entry = entries.readBigUInt64LE(frame * 8);
      // The two top bits mark holes and frames of other domains.
      machineFrames[frame] = entry >> 62n !== 0n ? NO_FRAME : Number(entry);
    }
    return { table: new FrameTable(machineFrames, this.#typesOf(machineFrames)), leaves };
  }

  /** State of the suspended guest. @param presentFrames u32 pairs (first frame, count) */
  captureState({ table, leaves }: P2m, presentFrames: Uint32Array): XenDeviceState {
    const info = this.#domain.info();
    const pvInfo = new Uint8Array(8);
    pvInfo[0] = WIDTH_64;
    pvInfo[1] = LEVELS_64;
    const frames = Buffer.alloc(8 + 8 * leaves.length);
    frames.writeUInt32LE(0, 0);
    frames.writeUInt32LE(table.frameCount - 1, 4);
    leaves.forEach((machine, i) =>
      frames.writeBigUInt64LE(BigInt(guestFrame(table, machine, 'the P2M')), 8 + 8 * i),
    );
    // A vCPU that is offline has no records, or a restore would start it.
    const vcpus = Array.from({ length: info.vcpuCount }, (_, vcpu) => vcpu)
      .filter((vcpu) => this.#domctl(DOMCTL.vcpuInfo, vcpu)[VCPU_ONLINE] !== 0)
      .flatMap((vcpu) => this.#vcpuRecords(table, vcpu));
    const types: number[] = [];
    for (let i = 0; i < presentFrames.length; i += 2) {
      for (let k = 0; k < presentFrames[i + 1]!; k++) types.push(table.types[presentFrames[i]! + k]!);
    }
    return {
      guestType: GUEST_TYPE.pv,
      presentFrames,
      pageTypes: Uint8Array.from(types),
      before: [{ type: LIBXC_RECORD.pvInfo, body: pvInfo }, ...policyRecords(this.#domain)],
      after: [
        { type: LIBXC_RECORD.pvFrames, body: frames },
        tscRecord(this.#domain),
        { type: LIBXC_RECORD.sharedInfo, body: this.#read([Number(info.sharedInfoFrame)]) },
        ...vcpus,
      ],
    };
  }

  /** Pages of machine frames, one after the other. */
  #read(machineFrames: readonly number[]): Buffer {
    const { calls, domid } = this.#domain;
    const bytes = Buffer.alloc(machineFrames.length * PAGE_SIZE_BYTES);
    for (let at = 0; at < machineFrames.length; at += MAX_BATCH_PAGES) {
      const part = machineFrames.slice(at, at + MAX_BATCH_PAGES);
      const errors = new Int32Array(part.length);
      const into = bytes.subarray(at * PAGE_SIZE_BYTES, (at + part.length) * PAGE_SIZE_BYTES);
      this.#domain.check(
        calls.readPages(domid, part.length, BigUint64Array.from(part, BigInt), errors, into),
        'mapping pages',
      );
      if (errors.some((error) => error !== 0)) {
        throw new CheckpointError('VM_MEMORY_READ', `cannot map pages of domain ${domid}`, {
          retryable: true,
        });
      }
    }
    return bytes;
  }

  /**
   * Four levels of page tables from `root`: the machine frame behind each of `count` pages from `address` on.
   */
  #walk(root: bigint, address: bigint, count: number): readonly number[] {
    const seen = new Map<number, Buffer>();
    const table = (machine: number): Buffer => {
      const known = seen.get(machine);
      if (known !== undefined) return known;
      const read = this.#read([machine]);
      seen.set(machine, read);
      return read;
    };
    return Array.from({ length: count }, (_, i) => {
      const at = address + BigInt(i * PAGE_SIZE_BYTES);
      let machine = Number(root);
      for (let level = 4; level > 0; level--) {
        const slot = Number((at >> BigInt(12 + 9 * (level - 1))) & 511n);
        const entry = table(machine).readBigUInt64LE(slot * 8);
        if ((entry & 1n) === 0n) throw unsupported('the P2M of the guest is not mapped');
        machine = Number((entry & ENTRY_FRAME_MASK) >> 12n);
      }
      return machine;
    });
  }

  #typesOf(machineFrames: Uint32Array): Uint8Array {
    const { calls, domid } = this.#domain;
    const types = new Uint8Array(machineFrames.length);
    const batch = new BigUint64Array(MAX_BATCH_PAGES);
    const halves = new Uint32Array(batch.buffer);
    let places: number[] = [];
    const flush = (): void => {
      if (places.length === 0) return;
      this.#domain.check(calls.pageTypes(domid, places.length, batch), 'asking for page types');
      places.forEach((frame, i) => (types[frame] = (halves[i * 2]! >>> TYPE_SHIFT) & TYPE_MASK));
      places = [];
    };
    machineFrames.forEach((machine, frame) => {
      if (machine === NO_FRAME) return;
      halves[places.length * 2] = machine;
      halves[places.length * 2 + 1] = 0;
      places.push(frame);
      if (places.length === MAX_BATCH_PAGES) flush();
    });
    flush();
    return types;
  }

  #vcpuRecords(table: FrameTable, vcpu: number): readonly StateRecord[] {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(vcpu, 0);
    const withHead = (type: number, body: Uint8Array): StateRecord => ({
      type,
      body: Buffer.concat([head, body]),
    });
    const records = [withHead(LIBXC_RECORD.vcpuBasic, this.#context(table, vcpu))];
    const extended = this.#domctl(DOMCTL.extendedContext, vcpu);
    const extendedBytes = extended.readUInt32LE(20);
    if (extendedBytes > 0) {
      records.push(withHead(LIBXC_RECORD.vcpuExtended, extended.subarray(16, 16 + extendedBytes)));
    }
    const xsave = this.#extendedState(vcpu);
    if (xsave.length > 0) records.push(withHead(LIBXC_RECORD.vcpuXsave, xsave));
    const msrs = this.#msrs(vcpu);
    if (msrs.length > 0) records.push(withHead(LIBXC_RECORD.vcpuMsrs, msrs));
    return records;
  }

  #context(table: FrameTable, vcpu: number): Buffer {
    const { calls, domid } = this.#domain;
    const context = Buffer.alloc(CONTEXT.sizeBytes);
    this.#domain.check(calls.vcpuContext(domid, vcpu, context), `reading vCPU ${vcpu}`);
    const translate = (at: number, what: string): void => {
      const frame = guestFrame(table, Number(context.readBigUInt64LE(at)), what);
      context.writeBigUInt64LE(BigInt(frame), at);
    };
    // The first vCPU hands the frame of the start info page over in rdx.
    if (vcpu === 0) translate(CONTEXT.rdx, 'the start info page');
    const descriptors = Number(context.readBigUInt64LE(CONTEXT.gdtEntries));
    for (let i = 0; i < Math.ceil(descriptors / ENTRIES_PER_PAGE); i++) {
      translate(CONTEXT.gdtFrames + 8 * i, 'a descriptor table');
    }
    // cr3 is the kernel's page table, cr1 the user's with bit 0 as "there is one".
    for (const [index, mark] of [
      [3, 0n],
      [1, 1n],
    ] as const) {
      const at = CONTEXT.controls + 8 * index;
      const value = context.readBigUInt64LE(at);
      if (index === 1 && value === 0n) continue;
      const frame = guestFrame(table, Number(value >> 12n), `cr${index}`);
      context.writeBigUInt64LE((BigInt(frame) << 12n) | mark, at);
    }
    return context;
  }

  #extendedState(vcpu: number): Uint8Array {
    const asked = this.#domctl(DOMCTL.extendedState, vcpu);
    const features = asked.readBigUInt64LE(24);
    if (features === 0n) return new Uint8Array(0);
    const into = new Uint8Array(Number(asked.readBigUInt64LE(32)));
    const got = this.#domctl(DOMCTL.extendedState, vcpu, { addressAt: 40, into }, (struct) => {
      struct.writeBigUInt64LE(features, 24);
      struct.writeBigUInt64LE(BigInt(into.length), 32);
    });
    return into.subarray(0, Number(got.readBigUInt64LE(32)));
  }

  #msrs(vcpu: number): Uint8Array {
    const count = this.#domctl(DOMCTL.msrs, vcpu).readUInt32LE(20);
    if (count === 0) return new Uint8Array(0);
    const into = new Uint8Array(count * MSR_BYTES);
    const got = this.#domctl(DOMCTL.msrs, vcpu, { addressAt: 24, into }, (struct) =>
      struct.writeUInt32LE(count, 20),
    );
    return into.subarray(0, got.readUInt32LE(20) * MSR_BYTES);
  }

  #domctl(
    command: number,
    vcpu: number,
    buffer?: { readonly addressAt: number; readonly into: Uint8Array },
    fill: (struct: Buffer) => void = () => undefined,
  ): Buffer {
    const struct = Buffer.alloc(DOMCTL.sizeBytes);
    struct.writeUInt32LE(command, 0);
    struct.writeUInt16LE(this.#domain.domid, 8);
    struct.writeUInt32LE(vcpu, 16);
    fill(struct);
    this.#domain.check(this.#domain.calls.domctl(struct, buffer), `reading vCPU ${vcpu} (domctl ${command})`);
    return struct;
  }
}

function guestFrame(table: FrameTable, machineFrame: number, what: string): number {
  const frame = table.guestFrameOf(machineFrame);
  if (frame !== undefined) return frame;
  throw new CheckpointError('VM_STATE', `${what} of the guest lies at a frame that is not the guest's`, {
    retryable: true,
  });
}

function unsupported(why: string): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', why);
}
