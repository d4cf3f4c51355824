/**
 * What about a VM lets writes escape the tracker, or keeps a checkpoint from being restored. Found out
 * through QEMU's object model, its open files and its memory map; nothing is changed.
 */

import { readdir, readFile, readlink } from 'node:fs/promises';

import { systemErrorCode } from '../../../src/errors.js';
import { readProcessText } from '../../../src/host/process-text.js';
import type { VmHazard } from '../../../src/hypervisor/vm.js';
import { allBlockers } from './blockers.js';
import { findDirectIo } from './direct-io.js';
import { listAddedDevices } from '../../qemu/added-devices.js';
import { blockedText, MIGRATION_BLOCKED, remedyFor } from '../../qemu/migration-blockers.js';
import type { Monitor } from '../../qemu/monitor.js';
import { bitmapsIn } from '../../qemu/block-devices.js';
import { asObject, asText } from '../../qemu/qmp-json.js';
import { refusedState, statusOf } from '../run/run-states.js';
import { isSealedTemplate } from '../memory/sealed-template.js';
import type { RamBlock } from '../memory/ram-blocks.js';

/** What the rules below look at. */
export interface VmInventory {
  /** QOM types of all devices that were added by -device or device_add. */
  readonly deviceTypes: readonly string[];
  readonly commandLine: string;
  /** Targets of the descriptors that QEMU has open. */
  readonly openFiles: readonly string[];
  /** A file that is read straight into guest memory; undefined when there is none. */
  readonly directFile: string | undefined;
  readonly blocks: readonly RamBlock[];
  /** Blocks whose file other processes have mapped, with one such process. */
  readonly sharedWith: readonly { readonly block: RamBlock; readonly pid: number }[];
  /** `status` of query-status. */
  readonly status: string;
  /** `status` of query-migrate; empty when there was no migration. */
  readonly migration: string;
  /** Why its device state is not asked for; see `findBlockers`. */
  readonly blockers: readonly string[];
  /** Images with persistent dirty bitmaps: path and names. */
  readonly bitmaps: readonly string[];
}

const MIGRATION_RUNS = new Set([
  'setup',
  'active',
  'cancelling',
  'device',
  'wait-unplug',
  'pre-switchover',
  'postcopy-active',
  'postcopy-paused',
  'postcopy-recover',
  'postcopy-recover-setup',
  'colo',
]);

/** @throws VM_GONE, VM_PERMISSION */
export async function takeInventory(
  monitor: Monitor,
  pid: number,
  all: readonly RamBlock[],
): Promise<VmInventory> {
  // Of a fork's template nobody can change a page under it.
  const blocks = all.filter((block) => !isSealedTemplate(pid, block));
  const [devices, status, migration, blockDevices, openFiles, commandLine, sharedWith] = await Promise.all([
    listAddedDevices(monitor),
    monitor.execute('query-status'),
    monitor.execute('query-migrate'),
    monitor.execute('query-block'),
    listOpenFiles(pid),
    readProcessText(`/proc/${pid}/cmdline`).catch(() => ''),
    findSharers(pid, blocks),
  ]);
  return {
    deviceTypes: devices.map(({ type }) => type),
    commandLine: commandLine.replaceAll('\0', ' '),
    openFiles,
    directFile: findDirectIo(pid),
    blocks,
    sharedWith,
    status: statusOf(status),
    migration: asText(asObject(migration).status),
    blockers: await allBlockers(monitor, migration, devices),
    bitmaps: bitmapsIn(blockDevices),
  };
}

export function hazardsOf(found: VmInventory): readonly VmHazard[] {
  return RULES.flatMap((rule) => rule(found) ?? []);
}

export function isMigrating(status: string): boolean {
  return MIGRATION_RUNS.has(status);
}

type Rule = (found: VmInventory) => VmHazard | undefined;

const RULES: readonly Rule[] = [
  ({ status }) => {
    const refused = refusedState(status);
    return refused === undefined
      ? undefined
      : {
          code: 'VM_STATE',
          effect: 'note',
          text: `no checkpoint is taken now: the VM ${refused.means} (${status})`,
          remedy: refused.remedy,
        };
  },
  ({ migration }) =>
    isMigrating(migration)
      ? {
          code: 'MIGRATION_ACTIVE',
          effect: 'refuse',
          text: `a migration of this VM is under way (${migration})`,
        }
      : undefined,
  ({ deviceTypes, openFiles }) =>
    deviceTypes.some((type) => type.startsWith('vfio-')) ||
    openFiles.some((path) => path.startsWith('/dev/vfio/'))
      ? {
          code: 'VFIO_DEVICE',
          effect: 'refuse',
          text: 'a host device is passed through (VFIO): its state cannot be saved, and its DMA is not seen',
        }
      : undefined,
  ({ openFiles, commandLine }) =>
    openFiles.some((path) => path.startsWith('/dev/vhost-vdpa')) || /\bvhost-vdpa\b/.test(commandLine)
      ? { code: 'VDPA_DEVICE', effect: 'refuse', text: 'a vDPA device writes to guest memory by itself' }
      : undefined,
  ({ deviceTypes }) =>
    deviceTypes.some((type) => type.startsWith('virtio-mem'))
      ? {
          code: 'MEMORY_HOTPLUG',
          effect: 'refuse',
          text: 'virtio-mem: its state has to be restored before the memory it describes, which no restore does yet',
        }
      : undefined,
  ({ blockers }) =>
    blockers.length === 0
      ? undefined
      : {
          code: MIGRATION_BLOCKED,
          effect: 'refuse',
          text: blockedText(blockers),
          remedy: remedyFor(blockers),
        },
  ({ deviceTypes, commandLine }) =>
    deviceTypes.some((type) => type.startsWith('vhost-user') || type.startsWith('x-vhost-user')) ||
    /(^|[\s,=])vhost-user\b/.test(commandLine)
      ? {
          code: 'VHOST_USER',
          effect: 'compare',
          text: 'a vhost-user process writes to guest memory, which the tracker does not see',
        }
      : undefined,
  ({ openFiles }) => {
    const device = openFiles.find((path) => /^\/dev\/vhost-(net|vsock|scsi)$/.test(path));
    return device === undefined
      ? undefined
      : {
          code: 'VHOST_KERNEL',
          effect: 'compare',
          text: `the kernel writes to guest memory through ${device}; that the tracker sees all of it is not proven`,
        };
  },
  ({ sharedWith }) =>
    sharedWith.length === 0
      ? undefined
      : {
          code: 'SHARED_MEMORY',
          effect: 'compare',
          text: `process ${sharedWith[0]!.pid} has guest memory mapped as well (${sharedWith[0]!.block.id})`,
        },
  ({ blocks, deviceTypes }) => {
    // Measured: after a hole is punched the kernel keeps the clean mark, so the page turns zero without being
    // reported.
    const backed = blocks.find((block) => block.backing !== 'anonymous' && block.sizeBytes > 0);
    return backed === undefined || !deviceTypes.some((type) => type.startsWith('virtio-balloon'))
      ? undefined
      : {
          code: 'BALLOON_ON_FILE',
          effect: 'compare',
          text: `the balloon takes pages out of ${backed.id}, which lies in a file or shared memory, without the tracker seeing it`,
        };
  },
  ({ bitmaps }) =>
    bitmaps.length === 0
      ? undefined
      : {
          code: 'DIRTY_BITMAPS',
          effect: 'note',
          warns: true,
          text: `a backup tool keeps dirty bitmaps (${bitmaps.join('; ')}): a restore marks everything as changed in them; with external snapshots they stay in the frozen image, and record nothing from then on`,
        },
  ({ directFile }) =>
    directFile === undefined
      ? undefined
      : {
          code: 'DIRECT_IO',
          effect: 'note',
          text: `${directFile} is read straight into guest memory: each live round stops the VM for a moment, so that no such read is in flight`,
        },
  ({ blocks }) => {
    const huge = blocks.find((block) => block.backing === 'hugetlb');
    return huge === undefined
      ? undefined
      : {
          code: 'HUGE_PAGES',
          effect: 'note',
          text: `${huge.id} lies in huge pages: one written byte marks ${huge.backingPageBytes >> 10} KiB, and reading what the guest never touched allocates it`,
        };
  },
];

/** Empty for who may not look: then no tracker is usable that the files would matter to. */
async function listOpenFiles(pid: number): Promise<readonly string[]> {
  const folder = `/proc/${pid}/fd`;
  const names = await readdir(folder).catch((error: unknown) => {
    if (systemErrorCode(error) === 'EACCES') return [];
    throw error;
  });
  const targets = await Promise.all(names.map((name) => readlink(`${folder}/${name}`).catch(() => '')));
  return targets.filter((target) => target !== '');
}

/** Looks through the maps of all processes, only when there is shared memory at all. */
async function findSharers(
  pid: number,
  blocks: readonly RamBlock[],
): Promise<readonly { readonly block: RamBlock; readonly pid: number }[]> {
  const shared = blocks.filter((block) => block.file !== undefined && block.backing !== 'anonymous');
  if (shared.length === 0) return [];
  const found: { readonly block: RamBlock; readonly pid: number }[] = [];
  for (const name of await readdir('/proc')) {
    const other = Number(name);
    if (!Number.isInteger(other) || other === pid) continue;
    const maps = await readFile(`/proc/${other}/maps`, 'latin1').catch(() => '');
    for (const block of shared) {
      if (maps.includes(` ${block.file!.device} ${block.file!.inode} `)) found.push({ block, pid: other });
    }
  }
  return found;
}
