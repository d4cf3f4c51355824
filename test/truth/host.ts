/** What the machine that the suite runs on can do: slow disks, swapping out, KSM, huge pages, vhost. */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';

import { addressOf, errnoName, libc } from '../../src/ffi/libc.js';
import { kernelObstacle } from '../../adapters/kvm/trackers/pagemap-scan/support.js';
import { softDirtyKernelObstacle } from '../../adapters/kvm/trackers/soft-dirty/support.js';
import { LabMachine, type Accelerator } from '../lab/machine.js';
import { slowReads } from '../lab/support/slow-reads.js';

const SYS_PIDFD_OPEN = 434;
const SYS_PROCESS_MADVISE = 440;
const MADV_PAGEOUT = 21n;
const KSM = '/sys/kernel/mm/ksm';
const STORAGE_DAEMON = '/usr/bin/qemu-storage-daemon';
const HUGE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';

/** KVM where it can run a Linux guest; the device alone proves nothing, so one is booted. */
export async function chooseAccelerator(): Promise<Accelerator> {
  // The nested lab is there for KVM and insists on it; a soak has asked before.
  const { CAIRN_ACCELERATOR: given } = process.env;
  if (given === 'kvm' || given === 'tcg') return given;
  if (!existsSync('/dev/kvm')) return 'tcg';
  try {
    const machine = await LabMachine.start({
      name: 'probe',
      accelerator: 'kvm',
      memoryMib: 128,
      devices: [],
      noWait: true,
    });
    try {
      await machine.waitForTick(1, 30_000);
      return 'kvm';
    } finally {
      await machine.destroy();
    }
  } catch {
    return 'tcg';
  }
}

/** Trackers that this kernel has, or that need nothing of it, whatever a VM allows. */
export function kernelTrackers(): readonly string[] {
  return [
    ...(kernelObstacle() === undefined ? ['pagemap-scan'] : []),
    ...(softDirtyKernelObstacle() === undefined ? ['soft-dirty'] : []),
    'compare',
    'qmp-stream',
  ];
}

export interface DirectDisk {
  readonly args: readonly string[];
  /** Once the machine runs; the result is called when it has ended. */
  slowDown(machine: LabMachine): () => void;
}

/** A disk read with O_DIRECT: the slow one that the nested lab's outer machine has, or a file. */
export function directDisk(dir: string): DirectDisk {
  const given = process.env.CAIRN_SLOW_DISK;
  const path = given ?? join(dir, 'direct.img');
  if (given === undefined) writeFileSync(path, randomBytes(16 << 20));
  return {
    args: [
      ...['-drive', `file=${path},if=none,id=direct,format=raw,cache=none,file.locking=off`],
      ...['-device', 'virtio-blk-pci,drive=direct'],
    ],
    slowDown: (machine) => {
      const slow = given === undefined ? slowReads(machine.pid, path) : undefined;
      return () => slow?.remove();
    },
  };
}

/** Why pages cannot be swapped out here; empty when they can. */
export function whyNoSwap(): string {
  return readFileSync('/proc/swaps', 'latin1').trim().split('\n').length > 1 ? '' : 'no swap space is in use';
}

/** Has the kernel write out all private memory of the machine. @returns KiB that are in swap afterwards */
export function swapOut(machine: LabMachine): number {
  const opened = libc().syscall(SYS_PIDFD_OPEN, machine.pid);
  if (opened.value < 0) throw new Error(`pidfd_open: ${errnoName(opened.errno)}`);
  try {
    for (const [, from, to] of readFileSync(`/proc/${machine.pid}/maps`, 'latin1').matchAll(
      /^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*$/gm,
    )) {
      const start = BigInt(`0x${from!}`);
      // Mappings that refuse are no guest memory.
      libc().syscall(
        SYS_PROCESS_MADVISE,
        opened.value,
        addressOf(BigUint64Array.of(start, BigInt(`0x${to!}`) - start)),
        1n,
        MADV_PAGEOUT,
      );
    }
  } finally {
    closeSync(opened.value);
  }
  const status = readFileSync(`/proc/${machine.pid}/status`, 'latin1');
  return Number(/^VmSwap:\s*(\d+)/m.exec(status)?.[1] ?? 0);
}

export function whyNoKsm(): string {
  return existsSync(KSM) ? '' : 'this kernel has no KSM';
}

export function startMerging(): void {
  writeFileSync(`${KSM}/pages_to_scan`, '20000');
  writeFileSync(`${KSM}/sleep_millisecs`, '20');
  writeFileSync(`${KSM}/run`, '1');
}

/** Also takes merged pages apart. */
export function stopMerging(): void {
  writeFileSync(`${KSM}/run`, '2');
}

export function mergedPages(pid: number): number {
  return Number(readFileSync(`/proc/${pid}/ksm_merging_pages`, 'latin1'));
}

/** Asks for 2 MiB pages. @returns why they are not to be had; empty when they are */
export function reserveHugePages(mib: number): string {
  if (!existsSync(HUGE_PAGES)) return 'this kernel has no huge pages of 2 MiB';
  const wanted = mib / 2;
  compactMemory();
  writeFileSync(HUGE_PAGES, `${wanted}`);
  const got = Number(readFileSync(HUGE_PAGES, 'latin1'));
  if (got >= wanted) return '';
  releaseHugePages();
  return `only ${got} of ${wanted} huge pages are to be had`;
}

export function releaseHugePages(): void {
  writeFileSync(HUGE_PAGES, '0');
}

/** Moves pages about: memory compaction of all zones. */
export function compactMemory(): void {
  const file = openSync('/proc/sys/vm/compact_memory', 'w');
  writeSync(file, '1');
  closeSync(file);
}

export function whyNoVhost(): string {
  return existsSync('/dev/vhost-net') && existsSync('/dev/net/tun') ? '' : 'this kernel has no vhost-net';
}

export function whyNoVhostUser(): string {
  return existsSync(STORAGE_DAEMON) ? '' : 'there is no qemu-storage-daemon here';
}

/** A disk that another process serves: it reads and writes the guest's memory by itself. */
export function vhostUserDisk(dir: string): { readonly args: readonly string[]; readonly end: () => void } {
  const image = join(dir, 'vhost-user.img');
  const socket = join(dir, 'vhost-user.sock');
  const pidFile = join(dir, 'vhost-user.pid');
  writeFileSync(image, randomBytes(16 << 20));
  // It returns when the socket is there.
  execFileSync(STORAGE_DAEMON, [
    ...['--daemonize', '--pidfile', pidFile],
    ...['--blockdev', `driver=file,node-name=file,filename=${image}`, '--export'],
    `type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=${socket},writable=on`,
  ]);
  const pid = Number(readFileSync(pidFile, 'latin1'));
  return {
    args: [
      ...['-chardev', `socket,id=backend,path=${socket}`],
      ...['-device', 'vhost-user-blk-pci,chardev=backend'],
    ],
    end: () => process.kill(pid, 'SIGKILL'),
  };
}

/** A tap device, up, with an address on its side. */
export function makeTap(name: string): void {
  execFileSync('ip', ['link', 'set', name, 'up']);
  execFileSync('ip', ['addr', 'add', '10.77.0.1/24', 'dev', name]);
}
