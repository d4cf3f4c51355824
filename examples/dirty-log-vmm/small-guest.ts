/**
 * A guest of ten bytes: it writes a number to each address of a list and halts. 32-bit protected mode without
 * paging.
 */

import koffi from 'koffi';

import { EXIT, PAGE_SIZE_BYTES, type KvmMachine, type KvmVcpu, type MemorySlot } from 'cairn/kvm-dirty-log';

/** lodsd; test eax, eax; jz halt; mov [eax], edx; jmp start; halt: hlt */
const CODE = Uint8Array.of(0xad, 0x85, 0xc0, 0x74, 0x04, 0x89, 0x10, 0xeb, 0xf7, 0xf4);
const CODE_AT = 0x1000;
const LIST_AT = 0x2000;
/** A ring that stays full after it was emptied would go on for ever. */
const MOST_FULL_RINGS = 100;
/** Pages of the first slot that hold code and list, which the guest does not write. */
export const OWN_PAGES = 16;

export interface GuestMemory {
  readonly slot: MemorySlot;
  readonly bytes: Uint8Array;
}

/** Zeroed and page-aligned. It must be referenced as long as the VM has it. */
export function guestMemory(slot: number, guestAddress: bigint, pageCount: number): GuestMemory {
  const raw = new Uint8Array((pageCount + 1) * PAGE_SIZE_BYTES);
  const ahead = (PAGE_SIZE_BYTES - Number(koffi.address(raw) % BigInt(PAGE_SIZE_BYTES))) % PAGE_SIZE_BYTES;
  const bytes = raw.subarray(ahead, ahead + pageCount * PAGE_SIZE_BYTES);
  return { slot: { slot, guestAddress, sizeBytes: bytes.length, hostAddress: koffi.address(bytes) }, bytes };
}

export class SmallGuest {
  readonly vcpu: KvmVcpu;
  readonly #low: GuestMemory;

  /** `low` is the memory at address 0. */
  constructor(machine: KvmMachine, low: GuestMemory) {
    this.#low = low;
    low.bytes.set(CODE, CODE_AT);
    this.vcpu = machine.createVcpu(0);
    const special = this.vcpu.specialRegisters();
    // struct kvm_segment, 24 bytes: base, limit, selector, type, present, dpl, db, s, l, g. cs, ds, es, fs,
    // gs, ss come first.
    for (let i = 0; i < 6; i++) {
      const at = i * 24;
      special.setBigUint64(at, 0n, true);
      special.setUint32(at + 8, 0xffff_ffff, true);
      special.setUint16(at + 12, i === 0 ? 8 : 16, true);
      [i === 0 ? 11 : 3, 1, 0, 1, 1, 0, 1].forEach((value, k) => special.setUint8(at + 14 + k, value));
    }
    // cr0 comes after eight segments and two tables of 16 bytes: protected mode, no paging.
    special.setBigUint64(8 * 24 + 2 * 16, 1n, true);
    this.vcpu.setSpecialRegisters(special);
  }

  /**
   * Has the guest write `value` to each address. Addresses are not 0, and their list fits before OWN_PAGES.
   * @param onFull called when a dirty ring is full, to empty it
   */
  write(addresses: readonly number[], value: number, onFull?: () => void): void {
    const list = new DataView(this.#low.bytes.buffer, this.#low.bytes.byteOffset + LIST_AT);
    if ((addresses.length + 1) * 4 > OWN_PAGES * PAGE_SIZE_BYTES - LIST_AT)
      throw new RangeError('too long a list');
    addresses.forEach((address, i) => list.setUint32(i * 4, address, true));
    list.setUint32(addresses.length * 4, 0, true);
    // struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
    const registers = new DataView(new ArrayBuffer(144));
    registers.setBigUint64(3 * 8, BigInt(value), true);
    registers.setBigUint64(4 * 8, BigInt(LIST_AT), true);
    registers.setBigUint64(16 * 8, BigInt(CODE_AT), true);
    registers.setBigUint64(17 * 8, 2n, true);
    this.vcpu.setRegisters(registers);
    let fullCount = 0;
    for (;;) {
      const reason = this.vcpu.run();
      if (reason === EXIT.halt) return;
      if (reason !== EXIT.dirtyRingFull || onFull === undefined || ++fullCount > MOST_FULL_RINGS)
        throw new Error(`the small guest left KVM with reason ${reason}`);
      onFull();
      // After that the kernel never finds it empty again.
      if (this.vcpu.ring?.isOverrun === true) return;
    }
  }
}
