/**
 * Holes of a file in shared memory: pages that nobody has ever written, or that a balloon has given back.
 * They read as zero, and reading one through the process' mapping would allocate it, which undoes the
 * balloon.
 */

import { closeSync, openSync, readdirSync, statSync } from 'node:fs';

import { libc } from '../../../src/ffi/libc.js';
import type { RamBlock } from './ram-blocks.js';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

export class FileHoles {
  readonly #descriptor: number;
  readonly #fileOffset: number;

  private constructor(descriptor: number, fileOffset: number) {
    this.#descriptor = descriptor;
    this.#fileOffset = fileOffset;
  }

  /**
   * Undefined for a block without such a file, or when the file cannot be opened: then nothing is known of
   * holes.
   */
  static open(pid: number, block: RamBlock): FileHoles | undefined {
    if (block.backing !== 'shared-memory' || block.file === undefined) return undefined;
    const { inode, offset } = block.file;
    try {
      for (const name of readdirSync(`/proc/${pid}/fd`)) {
        const path = `/proc/${pid}/fd/${name}`;
        try {
          if (statSync(path).ino !== inode) continue;
          const descriptor = openSync(path, 'r');
          // Inode numbers repeat from file system to file system.
          if (isSameFile(pid, descriptor, block)) return new FileHoles(descriptor, offset);
          closeSync(descriptor);
        } catch {
          // Closed in the meantime, or not a file at all.
        }
      }
    } catch {
      // Gone, or not permitted.
    }
    return undefined;
  }

  /** Visits the holes in [from, to), bytes of the block, as byte ranges of the block. */
  visit(from: number, to: number, visit: (start: number, end: number) => void): void {
    const end = to + this.#fileOffset;
    for (let at = from + this.#fileOffset; at < end;) {
      const hole = libc().lseek(this.#descriptor, at, SEEK_HOLE);
      if (hole.value < 0 || hole.value >= end) return;
      const data = libc().lseek(this.#descriptor, hole.value, SEEK_DATA);
      // ENXIO: nothing but hole up to the end of the file.
      const holeEnd = data.value < 0 ? end : Math.min(data.value, end);
      if (holeEnd <= hole.value) return;
      visit(hole.value - this.#fileOffset, holeEnd - this.#fileOffset);
      at = holeEnd;
    }
  }

  close(): void {
    closeSync(this.#descriptor);
  }
}

/**
 * /proc/PID/maps and stat print the device differently, so both are taken from maps: of ours and of QEMU's
 * mapping.
 */
function isSameFile(pid: number, descriptor: number, block: RamBlock): boolean {
  const here = statSync(`/proc/self/fd/${descriptor}`);
  const major = Number((BigInt(here.dev) >> 8n) & 0xfffn);
  const minor = Number((BigInt(here.dev) & 0xffn) | ((BigInt(here.dev) >> 12n) & 0xfff00n));
  const device = `${major.toString(16).padStart(2, '0')}:${minor.toString(16).padStart(2, '0')}`;
  return pid > 0 && block.file?.device === device;
}
