/**
 * A WebAssembly memory and its current view. Growing a memory detaches its buffer and with it every view made
 * before; `bytes()` is cheap and always valid, so ask again after anything that may have grown it.
 */

const WASM_PAGE_BYTES = 65_536;
/** 4 GiB less one WebAssembly page, so that every end of a range is below 2^32. */
export const MAX_MEMORY_BYTES = 65_535 * WASM_PAGE_BYTES;

export class LinearMemory {
  readonly memory: WebAssembly.Memory;
  private view: Uint8Array;

  /** @param initialBytes rounded up to 64 KiB. @throws RangeError when the address space does not have it */
  constructor(initialBytes = WASM_PAGE_BYTES) {
    if (!(initialBytes >= 0 && initialBytes <= MAX_MEMORY_BYTES)) {
      throw new RangeError(`linear memory of ${initialBytes} bytes: at most ${MAX_MEMORY_BYTES}`);
    }
    this.memory = new WebAssembly.Memory({ initial: Math.ceil(initialBytes / WASM_PAGE_BYTES) });
    this.view = new Uint8Array(this.memory.buffer);
  }

  get sizeBytes(): number {
    return this.memory.buffer.byteLength;
  }

  /** The whole memory. Owned by this object; invalid once the memory has grown. */
  bytes(): Uint8Array {
    const buffer = this.memory.buffer;
    if (this.view.buffer !== buffer) this.view = new Uint8Array(buffer);
    return this.view;
  }

  /**
   * Grows the memory to at least `sizeBytes`; contents stay, views made before do not.
   * @throws RangeError when it cannot
   */
  ensure(sizeBytes: number): void {
    if (sizeBytes <= this.sizeBytes) return;
    if (!(sizeBytes <= MAX_MEMORY_BYTES)) {
      throw new RangeError(`linear memory of ${sizeBytes} bytes: at most ${MAX_MEMORY_BYTES}`);
    }
    this.memory.grow(Math.ceil((sizeBytes - this.sizeBytes) / WASM_PAGE_BYTES));
  }
}
