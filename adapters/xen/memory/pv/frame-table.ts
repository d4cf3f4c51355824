/**
 * A table of the machine frame behind each frame of a suspended PV guest, and of its type. The main thread
 * finds it out in each stop and leaves it in a file of the runtime folder, from where the reading workers
 * take it; while the guest runs there is no file.
 *
 *     u32 number of frames, u32 machine frame each (0xffffffff: none), u8 type each
 */

import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';

import { FIRST_EMPTY_TYPE } from '../../stream/format.js';

export const NO_FRAME = 0xffff_ffff;

export class FrameTable {
  readonly machineFrames: Uint32Array;
  readonly types: Uint8Array;
  #inverse: Inverse | undefined;

  constructor(machineFrames: Uint32Array, types: Uint8Array) {
    this.machineFrames = machineFrames;
    this.types = types;
  }

  get frameCount(): number {
    return this.machineFrames.length;
  }

  /** Whether the frame has memory of the guest behind it. */
  isPresent(frame: number): boolean {
    return (
      frame < this.frameCount &&
      this.machineFrames[frame] !== NO_FRAME &&
      this.types[frame]! < FIRST_EMPTY_TYPE
    );
  }

  /** The guest's frame for a machine frame; made on first use. */
  guestFrameOf(machineFrame: number): number | undefined {
    this.#inverse ??= inverseOf(this.machineFrames);
    const frame = this.#inverse.get(machineFrame >>> BLOCK_BITS)?.[machineFrame & BLOCK_MASK];
    return frame === NO_FRAME ? undefined : frame;
  }
}

/**
 * The guest's frames by machine frame, in blocks: machine memory is large and a guest has stretches of it.
 */
type Inverse = ReadonlyMap<number, Uint32Array>;

const BLOCK_BITS = 6;
const BLOCK_MASK = (1 << BLOCK_BITS) - 1;

function inverseOf(machineFrames: Uint32Array): Inverse {
  const blocks = new Map<number, Uint32Array>();
  machineFrames.forEach((machine, frame) => {
    if (machine === NO_FRAME) return;
    let block = blocks.get(machine >>> BLOCK_BITS);
    if (block === undefined) {
      block = new Uint32Array(1 << BLOCK_BITS).fill(NO_FRAME);
      blocks.set(machine >>> BLOCK_BITS, block);
    }
    block[machine & BLOCK_MASK] = frame;
  });
  return blocks;
}

export function writeFrameTable(path: string, table: FrameTable): void {
  const bytes = Buffer.alloc(4 + table.frameCount * 5);
  bytes.writeUInt32LE(table.frameCount, 0);
  const { buffer, byteOffset, byteLength } = table.machineFrames;
  bytes.set(new Uint8Array(buffer, byteOffset, byteLength), 4);
  bytes.set(table.types, 4 + table.frameCount * 4);
  const fresh = `${path}.${process.pid}`;
  writeFileSync(fresh, bytes, { mode: 0o600 });
  renameSync(fresh, path);
}

export function removeFrameTable(path: string): void {
  rmSync(path, { force: true });
}

/** Reads the file again only when it is another one. */
export class FrameTableFile {
  readonly #path: string;
  #stamp = '';
  #table: FrameTable | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** Undefined while the guest runs. */
  read(): FrameTable | undefined {
    try {
      const { ino, mtimeNs, size } = statSync(this.#path, { bigint: true });
      const stamp = `${ino}:${mtimeNs}:${size}`;
      if (stamp !== this.#stamp) this.#table = parse(readFileSync(this.#path));
      this.#stamp = stamp;
    } catch {
      this.#stamp = '';
      this.#table = undefined;
    }
    return this.#table;
  }
}

function parse(bytes: Buffer): FrameTable {
  const count = bytes.readUInt32LE(0);
  // A copy of its own, so that it starts at a multiple of four.
  const machineFrames = new Uint32Array(Uint8Array.from(bytes.subarray(4, 4 + count * 4)).buffer);
  return new FrameTable(machineFrames, Uint8Array.from(bytes.subarray(4 + count * 4, 4 + count * 5)));
}
