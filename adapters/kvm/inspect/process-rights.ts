/**
 * As whom a process runs, and what holds it back: users, groups, capabilities, no-new-privileges, seccomp,
 * the label of a security module, limits of its control group. What a checkpoint records, so that a restore
 * gives a QEMU no more rights than it had.
 *
 * Source: proc(5) (/proc/PID/status, attr/current, cgroup), capabilities(7), cgroups(7).
 */

import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { PeerUser } from '../../qemu/peer-process.js';

/** Sets of capabilities, capability n as bit n. */
export interface CapabilitySets {
  readonly inheritable: bigint;
  readonly permitted: bigint;
  readonly effective: bigint;
  readonly bounding: bigint;
  readonly ambient: bigint;
}

export interface ProcessRights {
  /** Real, effective, saved, and of the file system. */
  readonly users: readonly number[];
  readonly groups: readonly number[];
  /** Supplementary groups, ascending. */
  readonly moreGroups: readonly number[];
  readonly capabilities: CapabilitySets;
  readonly noNewPrivileges: boolean;
  /** 0 none, 1 strict, 2 a filter. */
  readonly seccomp: number;
  /** What AppArmor or SELinux calls it; empty without either, or when it may not be read. */
  readonly label: string;
  /** Limits of its control group and those above, such as "memory.max 4294967296"; empty without any. */
  readonly limits: readonly string[];
  /** Who opened the monitor's socket: the kernel keeps that of a process which gave rights up later. */
  readonly openedMonitorAs?: PeerUser | undefined;
}

/** @throws VM_GONE when there is no such process */
export async function rightsOf(pid: number | 'self'): Promise<ProcessRights> {
  const status = await readFile(`/proc/${pid}/status`, 'latin1').catch((cause: unknown) => {
    throw new CheckpointError('VM_GONE', `process ${pid} has ended`, { cause });
  });
  const [label, cgroup] = await Promise.all(
    ['attr/current', 'cgroup'].map((file) => readFile(`/proc/${pid}/${file}`, 'utf8').catch(() => '')),
  );
  return {
    ...rightsInStatus(status),
    label: label!.replace(/[\0\s]+$/, ''),
    limits: await limitsOf(cgroup!),
  };
}

/** The part of the rights that stands in /proc/PID/status. */
export function rightsInStatus(status: string): Omit<ProcessRights, 'label' | 'limits'> {
  const field = (name: string): string =>
    new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(status)?.[1]?.trim() ?? '';
  const numbers = (name: string): number[] => field(name).split(/\s+/).filter(Boolean).map(Number);
  const capabilities = (name: string): bigint => BigInt(`0x${field(name) || '0'}`);
  return {
    users: numbers('Uid'),
    groups: numbers('Gid'),
    moreGroups: numbers('Groups').sort((a, b) => a - b),
    capabilities: {
      inheritable: capabilities('CapInh'),
      permitted: capabilities('CapPrm'),
      effective: capabilities('CapEff'),
      bounding: capabilities('CapBnd'),
      ambient: capabilities('CapAmb'),
    },
    noNewPrivileges: field('NoNewPrivs') === '1',
    seccomp: Number(field('Seccomp') || '0'),
  };
}

const LIMIT_FILES = ['memory.max', 'memory.high', 'cpu.max', 'pids.max', 'cpuset.cpus'] as const;

/** Of the unified hierarchy (line "0::PATH"); where the files are not there, nothing is known of limits. */
async function limitsOf(cgroup: string): Promise<readonly string[]> {
  const path = /^0::(\/.*)$/m.exec(cgroup)?.[1];
  const limits: string[] = [];
  if (path === undefined) return limits;
  for (let folder = path; folder !== '/'; folder = dirname(folder)) {
    for (const file of LIMIT_FILES) {
      const text = (await readFile(join('/sys/fs/cgroup', folder, file), 'latin1').catch(() => '')).trim();
      if (text === '' || text.startsWith('max')) continue;
      if (!limits.some((known) => known.startsWith(`${file} `))) limits.push(`${file} ${text}`);
    }
  }
  return limits;
}
