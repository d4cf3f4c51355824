/** The workload guest: a real Debian userland under real QEMU (TCG), its disk thrown away afterwards. */

import { execFileSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabMachine } from '../../test/lab/machine.js';
import { labCache, SOURCE_ROOT } from '../../test/lab/support/lab-files.js';

export interface Workload {
  /** As `bench/trace/guest/workload` knows it. */
  readonly name: string;
  readonly description: string;
  /** Until the load is past its beginning. */
  readonly warmUpMs: number;
  /** An operation, as `bench/trace/guest/operations` counts them; undefined where nothing is done. */
  readonly operation?: string;
  /** One takes so long that stretches begin and end with one. */
  readonly isCoarse?: boolean;
}

export const WORKLOADS: readonly Workload[] = [
  {
    name: 'idle',
    description: 'nothing but the kernel and a line a second to a serial port',
    warmUpMs: 3000,
  },
  {
    name: 'redis',
    description: 'redis-server under redis-benchmark: set, get, incr, lpush, hset, zadd',
    warmUpMs: 12_000,
    operation: 'command',
  },
  {
    name: 'python',
    description: 'a Python heap of 60000 objects, changed and replaced at random',
    warmUpMs: 15_000,
    operation: 'change of an object',
  },
  {
    name: 'sqlite',
    description: 'SQLite on ext4: transactions of 10 inserts and 10 updates',
    warmUpMs: 6000,
    operation: 'transaction',
  },
  {
    name: 'compile',
    description: 'gcc -O2 -g over generated C files',
    warmUpMs: 6000,
    operation: 'file compiled',
    isCoarse: true,
  },
  {
    name: 'archive',
    description: 'tar of file trees through zstd -3 and gzip -6',
    warmUpMs: 6000,
    operation: 'tree packed with zstd and gzip',
    isCoarse: true,
  },
  {
    name: 'web',
    description: 'nginx under wrk, files from 30 KiB to 1 MiB',
    warmUpMs: 6000,
    operation: 'request',
  },
  {
    name: 'stress',
    description: 'stress-ng --vm 1, all of its methods',
    warmUpMs: 5000,
    operation: 'run of 200 rounds',
    isCoarse: true,
  },
  {
    name: 'random',
    description: 'small writes to random places of 96 MiB',
    warmUpMs: 5000,
    operation: 'write',
  },
  {
    name: 'sequential',
    description: 'records of 64 bytes written through 96 MiB, front to end',
    warmUpMs: 5000,
    operation: 'record',
  },
];

const MEMORY_MIB = 512;

export interface GuestLoad {
  readonly name: string;
  /** The guest with its load under way; the caller discards it. */
  readonly start: () => Promise<LabMachine>;
}

/** For where there is no workload guest yet, and a quick run shall not wait until it is built. */
export const LAB_LOAD: GuestLoad = {
  name: '512 MiB guest, small files rewritten',
  start: async () => {
    const machine = await LabMachine.start({
      ...{ name: 'bench', memoryMib: MEMORY_MIB },
      devices: ['net', 'balloon'],
    });
    await machine.guest('lab fill 128', 900_000);
    await machine.guest('lab operations');
    return machine;
  },
};

/** Where image and traces are kept. */
export function workloadCache(): string {
  return dirname(labCache());
}

export interface WorkloadGuestOptions {
  /** Without phases that differ from each other, so that stretches of time can be compared. */
  readonly steady?: boolean;
}

/** The guest with its load past its beginning. @throws Error when the load does not get anything done */
export async function startWorkloadGuest(
  workload: Workload,
  { steady = false }: WorkloadGuestOptions = {},
): Promise<LabMachine> {
  execFileSync('bash', [join(SOURCE_ROOT, 'bench/trace/build-image.sh'), workloadCache()], {
    stdio: 'inherit',
  });
  const image = join(workloadCache(), 'workloads');
  const machine = await LabMachine.start({
    name: `workload-${workload.name}`,
    memoryMib: MEMORY_MIB,
    devices: ['balloon'],
    extraArgs: [
      ...['-kernel', join(image, 'vmlinuz'), '-initrd', join(image, 'initrd.gz')],
      ...['-drive', `file=${join(image, 'root.img')},if=none,id=root,format=raw,snapshot=on`],
      ...['-device', 'virtio-blk-pci,drive=root'],
    ],
  });
  try {
    await machine.guest(`/workload ${workload.name}${steady ? ' steady' : ''}`);
    await sleep(workload.warmUpMs);
    await mustBeAtWork(machine, workload);
    return machine;
  } catch (error) {
    await machine.discard();
    throw error;
  }
}

/** Command in the guest that prints how many operations the load has done. */
export function operationsCommand({ name, isCoarse }: Workload): string {
  return `/operations ${name}${isCoarse === true ? ' next' : ''}`;
}

async function mustBeAtWork(machine: LabMachine, workload: Workload): Promise<void> {
  if (workload.operation === undefined) return;
  if (Number(await machine.guest(`${operationsCommand(workload)} || true`, 120_000)) > 0) return;
  throw new Error(`${workload.name} does nothing: ${await machine.guest('tail -n 3 /tmp/workload.log')}`);
}
