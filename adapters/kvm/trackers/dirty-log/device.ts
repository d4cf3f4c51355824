/**
 * /dev/kvm, VMs and vCPUs by ioctl, for a program that embeds Cairn and runs its VM itself. KVM answers only
 * the process whose address space a VM was made in, so nothing here works on the VM of a QEMU; see
 * docs/kvm.md.
 *
 * SAFETY: addresses of guest memory are the caller's: they must stay mapped, and page-aligned, as long as
 * their slot exists.
 */

import { closeSync, openSync } from 'node:fs';

import koffi from 'koffi';

import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { errnoName, libc } from '../../../../src/ffi/libc.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import {
  API_VERSION,
  CAPABILITY,
  EXIT_REASON_OFFSET,
  LOG_DIRTY_PAGES,
  MANUAL_PROTECT_ENABLE,
  REQUEST,
  RING_PAGE_OFFSET,
} from './constants.js';
import { DirtyRing } from './dirty-ring.js';

const SYS_MMAP = 9;
const SYS_MUNMAP = 11;
const SYS_IOCTL = 16;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;

export interface MemorySlot {
  readonly slot: number;
  /** Guest physical address. */
  readonly guestAddress: bigint;
  readonly sizeBytes: number;
  /** Where it lies in this process. */
  readonly hostAddress: bigint;
}

export class KvmDevice {
  readonly #descriptor: number;

  private constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** @throws KVM_UNAVAILABLE without the device, the right to open it, or the interface of version 12 */
  static open(path = '/dev/kvm'): KvmDevice {
    let descriptor: number;
    try {
      descriptor = openSync(path, 'r+');
    } catch (cause) {
      const remedy =
        systemErrorCode(cause) === 'EACCES'
          ? 'join the group kvm, or run as root'
          : 'load kvm-amd or kvm-intel';
      throw new CheckpointError('KVM_UNAVAILABLE', `${path}: ${describeError(cause)}`, {
        cause,
        hint: remedy,
      });
    }
    const device = new KvmDevice(descriptor);
    try {
      const version = device.#ask('version', REQUEST.getApiVersion, 0);
      if (version === API_VERSION) return device;
      throw new CheckpointError('KVM_UNAVAILABLE', `${path} speaks version ${version}, not ${API_VERSION}`);
    } catch (error) {
      device.close();
      throw error;
    }
  }

  /** 0 when the kernel lacks it; otherwise what the capability's documentation says. */
  capability(number: number): number {
    return this.#ask('capability', REQUEST.checkExtension, number);
  }

  createVm(): KvmMachine {
    const vcpuMapBytes = this.#ask('size of the vCPU mapping', REQUEST.getVcpuMmapSize, 0);
    return new KvmMachine(this.#ask('new VM', REQUEST.createVm, 0), vcpuMapBytes, this);
  }

  close(): void {
    closeSync(this.#descriptor);
  }

  #ask(what: string, request: bigint, argument: number): number {
    return callWith(this.#descriptor, what, request, argument);
  }
}

/** A VM whose descriptor this process owns. The device may be closed before it. */
export class KvmMachine {
  readonly #descriptor: number;
  readonly #vcpuMapBytes: number;
  readonly #maximumRingBytes: number;
  readonly #manualProtect: number;
  #isManual = false;
  #ringBytes = 0;

  constructor(descriptor: number, vcpuMapBytes: number, device: KvmDevice) {
    this.#descriptor = descriptor;
    this.#vcpuMapBytes = vcpuMapBytes;
    this.#maximumRingBytes = device.capability(CAPABILITY.dirtyLogRing);
    this.#manualProtect = device.capability(CAPABILITY.manualDirtyLogProtect);
  }

  /** True when getting the log leaves it as it is, and only `clearDirtyLog` clears. */
  get isManual(): boolean {
    return this.#isManual;
  }

  get hasRings(): boolean {
    return this.#ringBytes > 0;
  }

  /** @throws KVM_CALL, also for a slot that overlaps another */
  setMemory(slot: MemorySlot, { logsDirtyPages = false } = {}): void {
    const region = new DataView(new ArrayBuffer(32));
    region.setUint32(0, slot.slot, true);
    region.setUint32(4, logsDirtyPages ? LOG_DIRTY_PAGES : 0, true);
    region.setBigUint64(8, slot.guestAddress, true);
    region.setBigUint64(16, BigInt(slot.sizeBytes), true);
    region.setBigUint64(24, slot.hostAddress, true);
    call(this.#descriptor, `memory slot ${slot.slot}`, REQUEST.setUserMemoryRegion, region);
  }

  /**
   * Has KVM no longer clear a log when it is read. To be called before any slot logs.
   * @throws KVM_UNAVAILABLE, KVM_CALL
   */
  useManualProtect(): void {
    if ((this.#manualProtect & MANUAL_PROTECT_ENABLE) === 0)
      throw new CheckpointError('KVM_UNAVAILABLE', 'this kernel has no manual protection of the dirty log');
    this.#enable('manual protection', CAPABILITY.manualDirtyLogProtect, MANUAL_PROTECT_ENABLE);
    this.#isManual = true;
  }

  /**
   * Rings in place of bitmaps, one for each vCPU. Before the first vCPU.
   * @param sizeBytes a power of two, at least a page
   * @throws KVM_UNAVAILABLE without rings, or for a size above the kernel's limit; KVM_CALL
   */
  useDirtyRings(sizeBytes: number): void {
    if (sizeBytes > this.#maximumRingBytes) {
      throw new CheckpointError(
        'KVM_UNAVAILABLE',
        this.#maximumRingBytes === 0
          ? 'this kernel has no dirty rings'
          : `dirty rings have at most ${this.#maximumRingBytes} bytes here`,
      );
    }
    this.#enable('dirty rings', CAPABILITY.dirtyLogRing, sizeBytes);
    this.#ringBytes = sizeBytes;
  }

  /**
   * Bit i of the result is page i of the slot. Clears the log and write-protects the pages again, unless
   * `isManual`.
   * @throws KVM_CALL, with rings and for a slot that does not log
   */
  getDirtyLog(slot: number, pageCount: number): BigUint64Array {
    const bits = new BigUint64Array(Math.ceil(pageCount / 64));
    const log = new DataView(new ArrayBuffer(16));
    log.setUint32(0, slot, true);
    log.setBigUint64(8, koffi.address(bits), true);
    // SAFETY: the kernel writes the slot's pages rounded up to 64, which is the length of `bits`.
    call(this.#descriptor, `dirty log of slot ${slot}`, REQUEST.getDirtyLog, log);
    return bits;
  }

  /**
   * Clears the pages whose bits are set, and write-protects them again.
   * @param firstPage a multiple of 64 @param pageCount a multiple of 64, unless it reaches the end of the
   *   slot
   * @throws KVM_CALL
   */
  clearDirtyLog(slot: number, firstPage: number, pageCount: number, bits: BigUint64Array): void {
    if (bits.length * 64 < pageCount) throw new RangeError(`${bits.length} words for ${pageCount} pages`);
    const clear = new DataView(new ArrayBuffer(24));
    clear.setUint32(0, slot, true);
    clear.setUint32(4, pageCount, true);
    clear.setBigUint64(8, BigInt(firstPage), true);
    clear.setBigUint64(16, koffi.address(bits), true);
    call(this.#descriptor, `clearing the dirty log of slot ${slot}`, REQUEST.clearDirtyLog, clear);
  }

  /** Takes back what was harvested from all rings, and write-protects those pages again. @returns how many */
  resetDirtyRings(): number {
    return callWith(this.#descriptor, 'resetting the dirty rings', REQUEST.resetDirtyRings, 0);
  }

  createVcpu(id: number): KvmVcpu {
    const descriptor = callWith(this.#descriptor, `vCPU ${id}`, REQUEST.createVcpu, id);
    return new KvmVcpu(descriptor, this.#vcpuMapBytes, this.#ringBytes);
  }

  close(): void {
    closeSync(this.#descriptor);
  }

  #enable(what: string, capability: number, argument: number): void {
    const enable = new DataView(new ArrayBuffer(104));
    enable.setUint32(0, capability, true);
    enable.setBigUint64(8, BigInt(argument), true);
    call(this.#descriptor, what, REQUEST.enableCap, enable);
  }
}

/** A vCPU. `run` blocks the calling thread until the guest leaves KVM. */
export class KvmVcpu {
  /** Undefined without rings. */
  readonly ring: DirtyRing | undefined;
  readonly #descriptor: number;
  readonly #mapped: readonly { readonly address: number; readonly sizeBytes: number }[];
  readonly #state: DataView;

  constructor(descriptor: number, mapBytes: number, ringBytes: number) {
    this.#descriptor = descriptor;
    const state = { address: map(descriptor, mapBytes, 0), sizeBytes: mapBytes };
    // SAFETY: the views live no longer than the mappings: `close` is the end of both.
    this.#state = new DataView(koffi.view(BigInt(state.address), mapBytes));
    if (ringBytes === 0) {
      this.#mapped = [state];
      return;
    }
    const ring = {
      address: map(descriptor, ringBytes, RING_PAGE_OFFSET * PAGE_SIZE_BYTES),
      sizeBytes: ringBytes,
    };
    this.ring = new DirtyRing(koffi.view(BigInt(ring.address), ringBytes));
    this.#mapped = [state, ring];
  }

  /** @returns the exit reason of linux/kvm.h @throws KVM_CALL */
  run(): number {
    callWith(this.#descriptor, 'running the vCPU', REQUEST.run, 0);
    return this.#state.getUint32(EXIT_REASON_OFFSET, true);
  }

  /** struct kvm_regs, 144 bytes. */
  setRegisters(registers: DataView): void {
    call(this.#descriptor, 'registers', REQUEST.setRegs, registers);
  }

  /** struct kvm_sregs, 312 bytes. */
  specialRegisters(): DataView {
    const registers = new DataView(new ArrayBuffer(312));
    call(this.#descriptor, 'special registers', REQUEST.getSregs, registers);
    return registers;
  }

  setSpecialRegisters(registers: DataView): void {
    call(this.#descriptor, 'special registers', REQUEST.setSregs, registers);
  }

  close(): void {
    for (const { address, sizeBytes } of this.#mapped) libc().syscall(SYS_MUNMAP, address, sizeBytes);
    closeSync(this.#descriptor);
  }
}

function map(descriptor: number, sizeBytes: number, offset: number): number {
  const mapped = libc().syscall(SYS_MMAP, 0, sizeBytes, PROT_READ_WRITE, MAP_SHARED, descriptor, offset);
  if (mapped.value !== -1) return mapped.value;
  throw new CheckpointError('KVM_CALL', `mapping a vCPU: ${errnoName(mapped.errno)}`);
}

function call(descriptor: number, what: string, request: bigint, argument: ArrayBufferView): number {
  return callWith(descriptor, what, request, koffi.address(argument));
}

function callWith(descriptor: number, what: string, request: bigint, argument: number | bigint): number {
  const { value, errno } = libc().syscall(SYS_IOCTL, descriptor, request, argument);
  if (value >= 0) return value;
  throw new CheckpointError('KVM_CALL', `KVM, ${what}: ${errnoName(errno)}`, {
    detail: { errno: errnoName(errno) },
  });
}
