/**
 * The truth about guest memory: QEMU's own migration stream of the stopped VM, read by a parser that shares no code with the
 * product. It holds every migratable RAM block, ROMs and video memory included.
 */

import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { LabMachine } from '../machine.js';

const PAGE = 4096;
/** Record flags of the RAM section; see QEMU's docs/devel/migration and migration/ram.c. */
const ZERO = 0x02;
const MEM_SIZE = 0x04;
const RAW = 0x08;
const END_OF_RECORDS = 0x10;
const SAME_BLOCK = 0x20;

/**
 * All RAM blocks of a machine that the caller has stopped. It stays stopped; `cont` continues it.
 * @param old an earlier result, whose buffers are used again
 * @returns block name -> contents
 */
export async function groundTruth(
  machine: LabMachine,
  old?: ReadonlyMap<string, Buffer>,
): Promise<Map<string, Buffer>> {
  const path = join(machine.dir, `truth-${Date.now()}.mig`);
  try {
    await migrateToFile(machine, path);
    return readRamBlocks(readFileSync(path), old);
  } finally {
    rmSync(path, { force: true });
  }
}

/** QEMU's own full save of a machine. Leaves it stopped, in state postmigrate. */
export async function migrateToFile(machine: LabMachine, path: string): Promise<void> {
  const { qmp } = machine;
  await qmp.command('migrate-set-parameters', { 'max-bandwidth': 0x7fffffff });
  await qmp.command('migrate', { uri: `exec:cat > ${path}` });
  for (;;) {
    const { status } = (await qmp.command('query-migrate')) as { status?: string };
    if (status === 'completed') return;
    if (status === 'failed' || status === 'cancelled') throw new Error(`migrate to ${path}: ${status}`);
    await sleep(5);
  }
}

/**
 * The RAM section of a migration file. Throws on anything it does not know.
 * @param old an earlier result, whose buffers are used again: memory that is touched for the first time takes longer than all else
 */
export function readRamBlocks(file: Buffer, old?: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
  let at = 0;
  const u8 = (): number => file.readUInt8(at++);
  const u32 = (): number => file.readUInt32BE((at += 4) - 4);
  const u64 = (): number => Number(file.readBigUInt64BE((at += 8) - 8));
  const text = (length: number): string => file.toString('latin1', at, (at += length));

  if (u32() !== 0x5145564d || u32() !== 3) throw new Error('not a QEMU migration file');
  if (u8() !== 7) throw new Error('no configuration section');
  text(u32());
  while (file[at] === 5) throw new Error('configuration subsections are not expected here');

  const blocks = new Map<string, Buffer>();
  let current: Buffer | undefined;
  const records = (): void => {
    for (;;) {
      const word = u64();
      const flags = word % PAGE;
      const offset = word - flags;
      if (flags === END_OF_RECORDS) return;
      if (flags === MEM_SIZE) {
        for (let left = offset; left > 0;) {
          const name = text(u8());
          const size = u64();
          const before = old?.get(name);
          blocks.set(name, before?.length === size ? before.fill(0) : Buffer.alloc(size));
          left -= size;
        }
        continue;
      }
      if ((flags & 0x200) !== 0) continue;
      if ((flags & SAME_BLOCK) === 0) current = blocks.get(text(u8()));
      if (current === undefined) throw new Error(`page record without a block at ${at}`);
      if ((flags & ZERO) !== 0) current.fill(u8(), offset, offset + PAGE);
      else if ((flags & RAW) !== 0) file.copy(current, offset, at, (at += PAGE));
      else throw new Error(`unknown page record ${flags} at ${at}`);
    }
  };

  let ramSection = -1;
  for (;;) {
    const type = u8();
    if (type === 8) {
      // A command to the destination, such as SWITCHOVER_START of QEMU 10: number, length, payload.
      at += 2;
      at += 2 + file.readUInt16BE(at);
      continue;
    }
    const section = u32();
    if (type === 1 || type === 4) {
      const name = text(u8());
      at += 8;
      // Devices follow RAM's last part; nothing of RAM comes after the first of them.
      if (type === 4) return blocks;
      if (name === 'ram') ramSection = section;
      else throw new Error(`unexpected live section ${name}`);
    } else if (type !== 2 && type !== 3) throw new Error(`unknown section type ${type} at ${at}`);
    if (section !== ramSection) throw new Error(`unknown section ${section}`);
    records();
    if (u8() !== 0x7e || u32() !== section) throw new Error('section footer is missing');
  }
}

/** The first pages that differ, as "block page". Empty when all is equal. */
export function differingPages(truth: Map<string, Buffer>, other: Map<string, Buffer>, most = 10): string[] {
  const found: string[] = [];
  for (const [name, expected] of truth) {
    const actual = other.get(name);
    if (actual?.length !== expected.length) {
      found.push(`${name}: ${actual?.length ?? 0} bytes instead of ${expected.length}`);
      continue;
    }
    if (expected.equals(actual)) continue;
    for (let page = 0; page < expected.length && found.length < most; page += PAGE) {
      if (expected.compare(actual, page, page + PAGE, page, page + PAGE) !== 0)
        found.push(`${name} page ${page / PAGE}`);
    }
  }
  for (const name of other.keys()) if (!truth.has(name)) found.push(`${name}: not in the truth`);
  return found;
}
