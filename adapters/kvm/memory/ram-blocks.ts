/**
 * The RAM blocks of a QEMU that make up its migratable state, each with its host address. Asked anew each
 * time, since blocks come and go with hotplug and grow with firmware tables.
 *
 * The host address comes from the RAMBlock structure in QEMU's heap, and also from `info ramblock` where that
 * prints it; both must agree, and /proc/PID/maps must show memory there for the block's whole length. Where
 * the structures lie is remembered in the runtime folder, so that only the first command on a VM searches.
 */

import { readFile } from 'node:fs/promises';

import { processFile, writeRuntimeFile } from '../../../src/host/runtime-file.js';
import { CheckpointError } from '../../../src/errors.js';
import { humanCommand, type Monitor } from '../../qemu/monitor.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { backingOf, mappingsOf, readMaps, type Backing, type Mapping } from './process-maps.js';
import { findRamBlocks, recheckBlock, type FoundBlock } from './ram-block-heap.js';
import { parseRamBlockTable, type RamBlockRow } from './ram-block-table.js';

export interface RamBlock {
  readonly id: string;
  readonly sizeBytes: number;
  /** Address in the QEMU process. */
  readonly host: number;
  readonly backing: Backing;
  readonly backingPageBytes: number;
  /** The file behind the first mapping, when that is a shared one. */
  readonly file:
    | { readonly device: string; readonly inode: number; readonly path: string; readonly offset: number }
    | undefined;
}

/**
 * RAM_MIGRATABLE of include/exec/memory.h (system/memory.h from 10.1 on): a migration transfers the block.
 */
const RAM_MIGRATABLE = 1 << 4;

/**
 * Names and sizes alone, without access to the process. QEMU names only blocks that a migration transfers;
 * the stream itself lists them again, and is held to it.
 * @throws VM_UNSUPPORTED, VM_GONE
 */
export async function listRamBlocks(
  monitor: Monitor,
): Promise<readonly { readonly id: string; readonly sizeBytes: number }[]> {
  return (await listedRows(monitor)).map(({ name, usedBytes }) => ({ id: name, sizeBytes: usedBytes }));
}

async function listedRows(monitor: Monitor): Promise<readonly RamBlockRow[]> {
  return parseRamBlockTable(await humanCommand(monitor, 'info ramblock')).filter((row) => row.usedBytes > 0);
}

export class RamBlocks {
  readonly #monitor: Monitor;
  readonly #process: QemuProcess;
  readonly #cachePath: string;
  #structs: Map<string, number> | undefined;

  constructor(monitor: Monitor, process: QemuProcess, runtimeDir: string) {
    this.#monitor = monitor;
    this.#process = process;
    this.#cachePath = processFile(runtimeDir, 'ramblocks', process);
  }

  /** The blocks in the order in which QEMU lists them. @throws VM_GONE, VM_PERMISSION, VM_UNSUPPORTED */
  async list(): Promise<readonly RamBlock[]> {
    const rows = await listedRows(this.#monitor);
    const maps = await readMaps(this.#process.pid);
    const found = await this.#locate(rows, maps);
    return rows.flatMap((row) => {
      const block = found.get(row.name);
      if (block === undefined) throw notFound(row.name);
      if (row.host !== undefined && row.host !== block.host) {
        throw new CheckpointError(
          'VM_UNSUPPORTED',
          `two host addresses for RAM block ${row.name}: this QEMU's structures are not known`,
        );
      }
      if ((block.flags & RAM_MIGRATABLE) === 0) return [];
      const mappings = mappingsOf(maps, block.host, block.host + row.usedBytes);
      if (mappings === undefined) throw notFound(row.name);
      const first = mappings[0]!;
      return {
        id: row.name,
        sizeBytes: row.usedBytes,
        host: block.host,
        backing: backingOf(mappings),
        backingPageBytes: row.backingPageBytes,
        file:
          first.inode === 0
            ? undefined
            : {
                device: first.device,
                inode: first.inode,
                path: first.name,
                offset: first.fileOffset + (block.host - first.start),
              },
      };
    });
  }

  async #locate(
    rows: readonly RamBlockRow[],
    maps: readonly Mapping[],
  ): Promise<ReadonlyMap<string, FoundBlock>> {
    const { pid } = this.#process;
    this.#structs ??= await this.#readCache();
    const found = new Map<string, FoundBlock>();
    for (const row of rows) {
      const structAddress = this.#structs.get(row.name);
      const block = structAddress === undefined ? undefined : recheckBlock(pid, maps, structAddress, row);
      if (block !== undefined) found.set(row.name, block);
    }
    if (found.size === rows.length) return found;
    const searched = findRamBlocks(pid, maps, rows);
    this.#structs = new Map([...searched].map(([name, block]) => [name, block.structAddress]));
    await this.#writeCache();
    return searched;
  }

  async #readCache(): Promise<Map<string, number>> {
    try {
      const cached = JSON.parse(await readFile(this.#cachePath, 'utf8')) as Record<string, unknown>;
      return new Map(
        Object.entries(cached).filter((entry): entry is [string, number] => Number.isSafeInteger(entry[1])),
      );
    } catch {
      // Not there or damaged: search. What it says is checked against the structures either way.
      return new Map();
    }
  }

  async #writeCache(): Promise<void> {
    const text = JSON.stringify(Object.fromEntries(this.#structs ?? []));
    // Without this file the next process searches once more.
    await writeRuntimeFile(this.#cachePath, text).catch(() => undefined);
  }
}

function notFound(name: string): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', `cannot find RAM block ${name} in the memory of QEMU`, {
    hint: 'the block may have just come or gone: try again; otherwise this build of QEMU is not known to work',
    retryable: true,
    detail: { block: name },
  });
}
