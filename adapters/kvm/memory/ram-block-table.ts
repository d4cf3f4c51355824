/**
 * `info ramblock` of the human monitor: the only list of RAM blocks that QEMU 7.2 to 10 give out.
 *
 *     Block Name    PSize              Offset               Used              Total                HVA  RO
 *         pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f69..   rw
 *
 * HVA and RO are there from QEMU 8.2 on.
 */

import { CheckpointError } from '../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

export interface RamBlockRow {
  readonly name: string;
  /** Page size of its backing: 4096, or that of its huge pages. */
  readonly backingPageBytes: number;
  /** Offset in QEMU's ram_addr_t space, not a guest address. */
  readonly offset: number;
  readonly usedBytes: number;
  readonly maxBytes: number;
  /** Host address where QEMU prints it. */
  readonly host: number | undefined;
}

const ROW =
  /^\s*(\S.*?)\s+(\d+) ([KMGT]?)i?B\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?:\s+0x([0-9a-f]+))?(?:\s+r[ow])?\s*$/;
/** User address space of x86-64, in which all blocks lie. */
const MAX_TOTAL_BYTES = 2 ** 47;
const UNIT: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** @throws VM_UNSUPPORTED when the table is not of that form */
export function parseRamBlockTable(text: string): readonly RamBlockRow[] {
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== '');
  const rows = lines.slice(1).map((line) => {
    const fields = ROW.exec(line);
    if (fields === null) throw unreadable();
    const hex = (index: number): number => Number.parseInt(fields[index]!, 16);
    return {
      name: fields[1]!,
      backingPageBytes: Number(fields[2]) * UNIT[fields[3]!]!,
      offset: hex(4),
      usedBytes: hex(5),
      maxBytes: hex(6),
      host: fields[7] === undefined ? undefined : hex(7),
    };
  });
  if (rows.length === 0 || new Set(rows.map((row) => row.name)).size !== rows.length) throw unreadable();
  if (!rows.every(({ usedBytes }) => usedBytes % PAGE_SIZE_BYTES === 0)) throw unreadable();
  if (rows.reduce((total, { usedBytes }) => total + usedBytes, 0) > MAX_TOTAL_BYTES) throw unreadable();
  return rows;
}

function unreadable(): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', 'the output of "info ramblock" is not understood', {
    hint: 'this version of QEMU is not known to work; 7.2 and 10.0 are',
  });
}
