/**
 * How the tracker knows that nobody else has cleared the soft-dirty bits, which every process has once and
 * any tool may clear (CRIU, memory profilers, another Cairn with another runtime folder).
 *
 * One page of QEMU that nothing writes to is written by us after each clearing: from then on it is soft-dirty
 * until the next clearing, whoever does that. If it is found clean, or holds another mark than ours, somebody
 * has cleared in between.
 *
 * The page is the head of the program file in QEMU's own, private mapping of it; /proc/PID/mem writes to it
 * as a debugger does, which gives QEMU a copy of that one page. The mark goes into the seven unused bytes of
 * e_ident (EI_PAD, elf(5)), which nobody reads once a program has been loaded.
 */

import { readSync, writeSync } from 'node:fs';

import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { readMaps } from '../../memory/process-maps.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import { isSoftDirty } from './entries.js';

const ELF_MAGIC = Buffer.from('\x7fELF', 'latin1');
const EI_PAD = 9;
export const MARK_BYTES = 7;

export class Canary {
  readonly #memory: number;
  readonly #pagemap: number;
  readonly #address: number;
  readonly #mark: Buffer;

  /**
   * `memory` is /proc/PID/mem open for reading and writing; the descriptors stay the caller's. `mark` has
   * MARK_BYTES.
   */
  constructor(memory: number, pagemap: number, address: number, mark: Buffer) {
    this.#memory = memory;
    this.#pagemap = pagemap;
    this.#address = address;
    this.#mark = mark;
  }

  /**
   * True when nobody has cleared the bits since the last `set` under this mark.
   * @throws VM_GONE, TRACKER_FAILED
   */
  isIntact(): boolean {
    const found = Buffer.alloc(MARK_BYTES);
    try {
      readSync(this.#memory, found, 0, MARK_BYTES, this.#address + EI_PAD);
    } catch (cause) {
      throw failed(cause);
    }
    return found.equals(this.#mark) && isSoftDirty(this.#pagemap, this.#address);
  }

  /**
   * Marks the page after a clearing.
   * @throws VM_GONE, TRACKER_FAILED also when the kernel does not show the page as written
   */
  set(): void {
    try {
      writeSync(this.#memory, this.#mark, 0, MARK_BYTES, this.#address + EI_PAD);
    } catch (cause) {
      throw failed(cause);
    }
    if (!this.isIntact()) throw failed(new Error('the mark did not stay'));
  }
}

/**
 * Address of the page.
 * @throws TRACKER_UNAVAILABLE when the program is not mapped as expected, VM_GONE, VM_PERMISSION
 */
export async function findCanaryPage(process: QemuProcess, memory: number): Promise<number> {
  for (const { start, name, shared, fileOffset } of await readMaps(process.pid)) {
    if (shared || fileOffset !== 0 || name.replace(/ \(deleted\)$/, '') !== process.program) continue;
    const head = Buffer.alloc(ELF_MAGIC.length);
    readSync(memory, head, 0, head.length, start);
    if (head.equals(ELF_MAGIC)) return start;
  }
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `tracker soft-dirty: the head of ${process.program} is not mapped in process ${process.pid}`,
  );
}

function failed(cause: unknown): CheckpointError {
  const code = systemErrorCode(cause);
  if (code === 'ESRCH') return new CheckpointError('VM_GONE', 'the VM has ended', { cause });
  return new CheckpointError(
    'TRACKER_FAILED',
    `tracker soft-dirty: the page that shows foreign clearing: ${describeError(cause)}`,
    {
      cause,
      hint: 'the kernel may forbid writing through /proc/PID/mem (proc_mem.force_override); use --tracker compare',
    },
  );
}
