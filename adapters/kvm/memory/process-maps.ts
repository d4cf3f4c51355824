/** The memory map of a process, /proc/PID/maps (proc(5)). */

import { readFile } from 'node:fs/promises';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';

export interface Mapping {
  /** Addresses are below 2^47 and exact as numbers. */
  readonly start: number;
  readonly end: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly shared: boolean;
  readonly fileOffset: number;
  /** Device (major:minor) and inode; inode 0 for anonymous memory. */
  readonly device: string;
  readonly inode: number;
  /** Path, [heap] and the like, or empty. */
  readonly name: string;
}

/** What backs a stretch of memory, as far as tracking and reading it are concerned. */
export type Backing =
  /** Private and anonymous: a page that is not there reads as zero. */
  | 'anonymous'
  /**
   * tmpfs or memfd, shared: a page that is not mapped may still have contents in the file; reading a hole
   * allocates it.
   */
  | 'shared-memory'
  /** Huge pages of hugetlbfs: holes cannot be told from the outside. */
  | 'hugetlb'
  /** Any other file. */
  | 'file';

/** @throws VM_GONE, VM_PERMISSION */
export async function readMaps(pid: number): Promise<readonly Mapping[]> {
  let text: string;
  try {
    text = await readFile(`/proc/${pid}/maps`, 'latin1');
  } catch (cause) {
    const code = systemErrorCode(cause);
    if (code === 'EACCES' || code === 'EPERM') {
      throw new CheckpointError('VM_PERMISSION', `no access to the memory map of process ${pid}`, {
        cause,
        hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE',
      });
    }
    throw new CheckpointError('VM_GONE', `process ${pid} has ended`, { cause });
  }
  if (text === '') throw new CheckpointError('VM_GONE', `process ${pid} has ended`);
  return text.split('\n').flatMap((line) => parseMapping(line) ?? []);
}

/** Undefined for a line that is not a mapping. */
export function parseMapping(line: string): Mapping | undefined {
  const fields = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/.exec(line);
  if (fields === null) return undefined;
  const access = fields[3]!;
  return {
    start: Number.parseInt(fields[1]!, 16),
    end: Number.parseInt(fields[2]!, 16),
    readable: access.startsWith('r'),
    writable: access[1] === 'w',
    executable: access[2] === 'x',
    shared: access[3] === 's',
    fileOffset: Number.parseInt(fields[4]!, 16),
    device: fields[5]!,
    inode: Number(fields[6]),
    name: fields[7]!,
  };
}

/** The mappings that hold [start, end), in order; undefined when a part of it is not mapped readable. */
export function mappingsOf(
  maps: readonly Mapping[],
  start: number,
  end: number,
): readonly Mapping[] | undefined {
  const found: Mapping[] = [];
  let at = start;
  for (const mapping of maps) {
    if (mapping.end <= at || at >= end) continue;
    if (mapping.start > at || !mapping.readable) return undefined;
    found.push(mapping);
    at = mapping.end;
  }
  return at >= end ? found : undefined;
}

export function backingOf(mappings: readonly Mapping[]): Backing {
  const backed = mappings.find((mapping) => mapping.inode !== 0 || mapping.shared);
  if (backed === undefined) return 'anonymous';
  if (/^\/anon_hugepage|hugetlb|hugepages/.test(backed.name)) return 'hugetlb';
  const inMemory = /^\/(memfd:|dev\/shm\/|dev\/zero|SYSV|run\/shm\/)/.test(backed.name);
  return backed.shared && inMemory ? 'shared-memory' : 'file';
}
