/**
 * Disk snapshots of checkpoints that are forgotten. Internal ones and those that the storage took can be removed; an external one is the
 * image that the overlay after it stands on, which only a merge can remove, and that is the operator's.
 */

import { resolve } from 'node:path';

import { describeError } from '../errors.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { DiskSnapshot } from '../hypervisor/disks.js';
import type { Vm } from '../hypervisor/vm.js';
import type { Manifest } from '../format/manifest.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { VmLock } from '../host/vm-lock.js';

export interface LeftSnapshot {
  readonly checkpointId: string;
  readonly snapshot: DiskSnapshot;
  /** What the operator can run, or do. */
  readonly remedy: string;
  /** Why it could not be removed; empty when nobody tried. */
  readonly why: string;
}

/** The snapshots of these checkpoints, with what removes them by hand. */
export function snapshotsOf(manifests: readonly Manifest[]): readonly LeftSnapshot[] {
  return manifests.flatMap((manifest) =>
    manifest.disks.map((snapshot) => ({
      checkpointId: manifest.id,
      snapshot,
      remedy: remedyOf(manifest, snapshot),
      why: '',
    })),
  );
}

export interface DiskDropper {
  /** Removes those snapshots of these checkpoints that can be removed. @returns what stays behind */
  drop(manifests: readonly Manifest[]): Promise<readonly LeftSnapshot[]>;
  close(): Promise<void>;
}

/**
 * To be opened before anything is forgotten: what cannot be reached is better known then.
 * @param vmAddress of the running VM; undefined: it does not run
 * @throws what attaching throws, VM_LOCKED
 */
export async function openDiskDropper(
  hypervisors: HypervisorRegistry,
  vmAddress: string | undefined,
): Promise<DiskDropper> {
  if (vmAddress === undefined) {
    const drop = (manifests: readonly Manifest[]): Promise<readonly LeftSnapshot[]> =>
      dropEach(manifests, async ({ hypervisor, machine }, snapshot) => {
        await hypervisors.byName(hypervisor).dropDiskSnapshots?.(machine, [snapshot]);
      });
    return { drop, close: () => Promise.resolve() };
  }
  const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
  const vm = await hypervisors.forAddress(vmAddress).attach(vmAddress, { runtimeDir });
  try {
    const lock = await VmLock.take(vm.identity);
    return {
      drop: (manifests) => dropThroughVm(manifests, vm),
      close: async () => {
        await lock.release();
        await vm.close();
      },
    };
  } catch (error) {
    await vm.close();
    throw error;
  }
}

/** Of a VM that is attached and locked. @returns what stays behind */
export function dropThroughVm(manifests: readonly Manifest[], vm: Vm): Promise<readonly LeftSnapshot[]> {
  return dropEach(manifests, (_, snapshot) => vm.dropDiskSnapshots([snapshot]));
}

async function dropEach(
  manifests: readonly Manifest[],
  drop: (manifest: Manifest, snapshot: DiskSnapshot) => Promise<void>,
): Promise<readonly LeftSnapshot[]> {
  const left: LeftSnapshot[] = [];
  for (const manifest of manifests) {
    for (const found of snapshotsOf([manifest])) {
      if (found.snapshot.mode === 'external') {
        left.push(found);
        continue;
      }
      try {
        await drop(manifest, found.snapshot);
      } catch (error) {
        left.push({ ...found, why: describeError(error) });
      }
    }
  }
  return left;
}

function remedyOf(
  { machine }: Manifest,
  { mode, path, snapshotName, volume, overlayPath }: DiskSnapshot,
): string {
  const image = resolve(typeof machine.cwd === 'string' ? machine.cwd : '/', path);
  switch (mode) {
    case 'internal':
      return `qemu-img snapshot -d ${quoted(snapshotName)} ${quoted(image)}`;
    case 'lvm':
      return `lvremove ${quoted(`${volume?.vgName ?? ''}/${snapshotName}`)}`;
    case 'rbd':
      return `rbd snap rm ${quoted(`${path.replace(/^rbd:/, '')}@${snapshotName}`)}`;
    case 'external':
      return `merge ${overlayPath} into ${image} (blockcommit), if no other checkpoint needs ${image} as it is`;
  }
}

/** For a shell. */
function quoted(text: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
