/**
 * What a tracker has to survive. Each scenario is a machine, something done to it before each checkpoint, and for each tracker
 * whether its checkpoints must be exact or whether it must be refused.
 */

import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import type { LabMachine, LabMachineOptions } from '../lab/machine.js';
import { GUEST_COMMAND_LINE } from '../lab/support/lab-files.js';
import {
  compactMemory,
  directDisk,
  makeTap,
  mergedPages,
  releaseHugePages,
  reserveHugePages,
  startMerging,
  stopMerging,
  swapOut,
  vhostUserDisk,
  whyNoKsm,
  whyNoSwap,
  whyNoVhost,
  whyNoVhostUser,
} from './host.js';

export const MEMORY_MIB = 128;
/** Guest, Cairn and the oracle may share two emulated cores: a load that never rests leaves nothing to the others. */
export const LOAD = 'lab memory 8 300000';
export const DISK_LOAD =
  'while :; do dd if=/tmp/diary of=/dev/vda bs=4k count=4 conv=notrunc; ' +
  'dd if=/dev/vda of=/dev/null bs=64k count=8 iflag=direct; sync; usleep 300000; done';
/** One direct read at a time, with a rest after it in which nothing marks its pages again. */
export const DIRECT_LOAD =
  'n=0; while :; do n=$((n + 1)); dd if=/dev/vda of=/dev/null bs=64k count=1 skip=$((n * 7 % 200)) iflag=direct; usleep 200000; done';

const TRACKERS_OF_MARKS = ['pagemap-scan', 'soft-dirty'] as const;

export interface Setup {
  readonly options: Partial<LabMachineOptions>;
  /** When the machine runs, before the base. */
  readonly onStart?: (machine: LabMachine) => Promise<void>;
  /** When the machine has ended. */
  readonly onEnd?: () => void;
}

export interface Step {
  readonly name: string;
  /** Done before the checkpoint. */
  readonly act: (machine: LabMachine) => Promise<void>;
  /** All pages are compared in this one, by design. */
  readonly mayCompare?: boolean;
}

export interface Scenario {
  readonly name: string;
  /** Why it cannot run here; empty when it can. */
  readonly whyNot?: () => string;
  readonly setUp: (dir: string) => Setup;
  readonly steps: readonly Step[];
  /** Trackers that would miss writes and must be refused. */
  readonly refused?: readonly string[];
  /** Changes what the tracker counts from, so that a second attachment compares. */
  readonly breaksRecord?: boolean;
}

const wait: Step = { name: 'under load', act: () => sleep(1000) };

const balloonTo = (mib: number): Step => ({
  name: `balloon ${mib} MiB`,
  act: async (machine) => {
    await machine.qmp.command('balloon', { value: mib << 20 });
    await sleep(1500);
  },
});

/** For the short run of the nested lab: what differs most from what the tests on this host see. */
const BRIEF: Scenario = {
  name: 'brief',
  setUp: () => ({ options: { devices: ['disk', 'balloon'] }, onStart: underLoad }),
  steps: [wait, balloonTo(100)],
};

const SCENARIOS: readonly Scenario[] = [
  {
    name: 'load',
    setUp: () => ({ options: { devices: ['disk', 'net'] }, onStart: underLoad }),
    steps: [wait, wait, wait],
  },
  {
    name: 'direct-disk',
    setUp: (dir) => {
      const disk = directDisk(dir);
      let undo: (() => void) | undefined;
      return {
        options: { devices: [], extraArgs: disk.args },
        onStart: async (machine) => {
          undo = disk.slowDown(machine);
          await machine.guest(LOAD);
          await machine.guest(`(${DIRECT_LOAD}) </dev/null >/dev/null 2>&1 &`);
        },
        onEnd: () => undo?.(),
      };
    },
    steps: [wait, wait, wait, wait],
  },
  {
    name: 'balloon',
    setUp: () => ({
      // Debian's kernel clears pages when it hands them out, which hides what a balloon does to them.
      options: {
        devices: ['disk', 'balloon'],
        extraArgs: ['-append', `${GUEST_COMMAND_LINE} init_on_alloc=0 init_on_free=0`],
      },
      onStart: async (machine) => {
        await machine.guest('dd if=/dev/urandom of=/tmp/x bs=1M count=30; rm /tmp/x');
        await underLoad(machine);
      },
    }),
    steps: [balloonTo(96), balloonTo(128), balloonTo(90), balloonTo(120)],
  },
  {
    name: 'compaction',
    setUp: () => {
      // Memory in pieces for khugepaged to collect, and pages on the move all the time.
      writeFileSync('/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs', '50');
      let moving: NodeJS.Timeout | undefined;
      return {
        options: { devices: ['balloon'] },
        onStart: async (machine) => {
          await machine.guest(LOAD);
          moving = setInterval(compactMemory, 250);
        },
        onEnd: () => clearInterval(moving),
      };
    },
    steps: [balloonTo(100), balloonTo(128), wait],
  },
  {
    name: 'memfd',
    setUp: () => ({ options: { devices: ['disk'], extraArgs: sharedMemory() }, onStart: underLoad }),
    steps: [wait, wait],
    refused: ['soft-dirty'],
  },
  {
    name: 'memfd-balloon',
    setUp: () => ({ options: { devices: ['balloon'], extraArgs: sharedMemory() }, onStart: loaded }),
    steps: [balloonTo(100), balloonTo(128)],
    refused: TRACKERS_OF_MARKS,
  },
  {
    name: 'hugetlb',
    whyNot: () => {
      const reason = reserveHugePages(MEMORY_MIB);
      if (reason === '') releaseHugePages();
      return reason;
    },
    setUp: () => {
      reserveHugePages(MEMORY_MIB);
      return {
        options: { devices: ['disk'], extraArgs: sharedMemory('hugetlb=on,hugetlbsize=2M,') },
        onStart: underLoad,
        onEnd: releaseHugePages,
      };
    },
    steps: [wait, wait],
    refused: ['soft-dirty'],
  },
  {
    name: 'reboot',
    setUp: () => ({ options: { devices: ['disk'] }, onStart: loaded }),
    steps: [
      {
        name: 'after a reboot',
        act: async (machine) => {
          const bytes = machine.diary().length;
          await machine.guest('reboot -f &');
          await machine.waitForBoot(bytes, 180_000);
        },
      },
      {
        name: 'after a reset in the middle of a boot',
        act: async (machine) => {
          await machine.qmp.command('system_reset');
          await sleep(1500);
        },
      },
    ],
  },
  {
    name: 'memory-hotplug',
    setUp: () => ({
      options: {
        devices: [],
        extraArgs: [
          ...['-m', `${MEMORY_MIB},slots=2,maxmem=512M`],
          // Room for memory above 4 GiB makes the kernel set aside half of the guest for bounce buffers.
          ...['-append', `${GUEST_COMMAND_LINE} swiotlb=512`],
        ],
      },
      onStart: loaded,
    }),
    steps: [
      wait,
      {
        name: 'after memory was plugged in',
        mayCompare: true,
        act: async (machine) => {
          await machine.qmp.command('object-add', {
            'qom-type': 'memory-backend-ram',
            id: 'plugged',
            size: 128 << 20,
          });
          await machine.qmp.command('device_add', { driver: 'pc-dimm', id: 'dimm', memdev: 'plugged' });
          await sleep(1000);
          await machine.guest(
            'for m in /sys/devices/system/memory/memory*/state; do echo online >$m; done 2>/dev/null; true',
          );
        },
      },
      {
        name: 'with that memory in use',
        act: async (machine) => {
          await machine.guest('dd if=/dev/urandom of=/tmp/big bs=1M count=60; rm /tmp/big', 180_000);
        },
      },
    ],
    breaksRecord: true,
  },
  {
    name: 'swap',
    whyNot: whyNoSwap,
    setUp: () => ({ options: { devices: ['balloon'] }, onStart: loaded }),
    steps: [
      {
        name: 'swapped out',
        act: async (machine) => {
          await sleep(500);
          if (swapOut(machine) < 10_000) throw new Error('nothing was swapped out');
        },
      },
      { name: 'partly swapped in', act: () => sleep(1500) },
      {
        name: 'swapped out after writes',
        act: (machine) => {
          swapOut(machine);
          return Promise.resolve();
        },
      },
    ],
  },
  {
    name: 'ksm',
    whyNot: whyNoKsm,
    setUp: () => ({
      options: { devices: [] },
      onStart: async (machine) => {
        await machine.guest(
          'dd if=/dev/urandom of=/tmp/a bs=1M count=8; for i in 1 2 3; do cp /tmp/a /tmp/a$i; done',
        );
        startMerging();
        const until = Date.now() + 60_000;
        while (mergedPages(machine.pid) < 1000) {
          if (Date.now() > until) throw new Error('KSM merged nothing');
          await sleep(200);
        }
        await machine.guest(LOAD);
      },
      onEnd: stopMerging,
    }),
    steps: [
      wait,
      {
        name: 'merged pages written',
        act: async (machine) => {
          await machine.guest('dd if=/dev/urandom of=/tmp/a1 bs=1M count=4 conv=notrunc');
          await sleep(1000);
        },
      },
    ],
    refused: ['soft-dirty'],
  },
  {
    name: 'vhost',
    whyNot: whyNoVhost,
    setUp: () => ({
      options: {
        devices: [],
        extraArgs: [
          ...['-netdev', 'tap,id=tap,ifname=cairn-tap,script=no,downscript=no,vhost=on'],
          ...['-device', 'virtio-net-pci,netdev=tap,romfile='],
        ],
      },
      onStart: async (machine) => {
        makeTap('cairn-tap');
        await machine.guest(
          'ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; ping -c 1 -w 20 10.77.0.1',
        );
        await machine.guest('ping -i 0.2 10.77.0.1 </dev/null >/dev/null 2>&1 &');
      },
    }),
    steps: [wait, wait],
    refused: TRACKERS_OF_MARKS,
  },
  {
    name: 'vhost-user',
    whyNot: whyNoVhostUser,
    setUp: (dir) => {
      const disk = vhostUserDisk(dir);
      return {
        options: { devices: [], extraArgs: [...sharedMemory(), ...disk.args] },
        onStart: async (machine) => {
          await machine.guest(LOAD);
          await machine.guest(`(${DIRECT_LOAD}) </dev/null >/dev/null 2>&1 &`);
        },
        onEnd: disk.end,
      };
    },
    steps: [wait, wait],
    refused: [...TRACKERS_OF_MARKS, 'qmp-stream'],
  },
];

/** `brief` has nothing that the others lack, so `all` leaves it out. @throws for a name that is not known */
export function scenariosNamed(names: readonly string[]): readonly Scenario[] {
  return names.flatMap((name) => {
    if (name === 'all') return SCENARIOS;
    const found = [...SCENARIOS, BRIEF].find((scenario) => scenario.name === name);
    if (found !== undefined) return found;
    throw new Error(`no scenario ${name}; known: ${SCENARIOS.map((known) => known.name).join(', ')}`);
  });
}

async function loaded(machine: LabMachine): Promise<void> {
  await machine.guest(LOAD);
}

async function underLoad(machine: LabMachine): Promise<void> {
  await machine.guest(LOAD);
  await machine.guest(`(${DISK_LOAD}) </dev/null >/dev/null 2>&1 &`);
}

function sharedMemory(more = ''): readonly string[] {
  return [
    ...['-object', `memory-backend-memfd,id=shared,size=${MEMORY_MIB}M,${more}share=on`],
    ...['-machine', 'memory-backend=shared'],
  ];
}
