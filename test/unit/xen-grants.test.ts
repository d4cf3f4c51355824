import { describe, expect, it } from '@jest/globals';

import { grantedForWriting } from '../../adapters/xen/memory/shared-frames.js';

const PERMIT_ACCESS = 1;
const TRANSITIVE = 3;
const READ_ONLY = 1 << 2;
const READING = 1 << 3;
const WRITING = 1 << 4;

/** struct grant_entry_v1: u16 flags, u16 domid, u32 frame. */
function version1(...entries: readonly (readonly [flags: number, frame: number])[]): Uint8Array {
  const bytes = Buffer.alloc(4096);
  entries.forEach(([flags, frame], i) => {
    bytes.writeUInt16LE(flags, i * 8);
    bytes.writeUInt32LE(frame, i * 8 + 4);
  });
  return bytes;
}

/** union grant_entry_v2: u16 flags, u16 domid, u32, u64 frame; its state lies in another table, u16 each. */
function version2(...entries: readonly (readonly [flags: number, status: number, frame: bigint])[]): {
  readonly entries: Uint8Array;
  readonly status: Uint8Array;
} {
  const bytes = Buffer.alloc(4096);
  const status = Buffer.alloc(4096);
  entries.forEach(([flags, state, frame], i) => {
    bytes.writeUInt16LE(flags, i * 16);
    bytes.writeBigUInt64LE(frame, i * 16 + 8);
    status.writeUInt16LE(state, i * 2);
  });
  return { entries: bytes, status };
}

describe('the frames of a grant table that are mapped for writing', () => {
  it('are found by the flags of the entries in version 1', () => {
    const entries = version1(
      [0, 1],
      [PERMIT_ACCESS, 2],
      [PERMIT_ACCESS | READING, 3],
      [PERMIT_ACCESS | READING | WRITING, 4],
      [PERMIT_ACCESS | READ_ONLY | READING, 5],
      [2 | WRITING, 6],
      [PERMIT_ACCESS | READING | WRITING, 0xfeffc],
    );
    expect(grantedForWriting({ version: 1, entries, status: new Uint8Array(0) })).toEqual([4, 0xfeffc]);
  });

  it('are found by the table of states in version 2, with frames above 16 TiB', () => {
    const table = version2(
      [PERMIT_ACCESS, READING, 3n],
      [PERMIT_ACCESS, READING | WRITING, 0x1_0000_0004n],
      // Memory of another domain, which that one has granted.
      [TRANSITIVE, READING | WRITING, 5n],
      [PERMIT_ACCESS | WRITING, 0, 6n],
    );
    expect(grantedForWriting({ version: 2, ...table })).toEqual([0x1_0000_0004]);
  });

  it('are none in an empty table', () => {
    const none = new Uint8Array(0);
    expect(grantedForWriting({ version: 1, entries: none, status: none })).toEqual([]);
    expect(grantedForWriting({ version: 2, entries: none, status: none })).toEqual([]);
  });
});
