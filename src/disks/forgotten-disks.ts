/**
 * Disk snapshots of checkpoints that are forgotten. Most can be removed. Some are what the disk stands on by
 * now: what is to be done about those is the operator's, and said.
 */

import { CheckpointError, describeError } from '../errors.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { DiskSnapshot, RecordedDisks } from '../hypervisor/disks.js';
import type { Vm } from '../hypervisor/vm.js';
import type { Manifest } from '../format/manifest.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { VmLock } from '../host/vm-lock.js';

export interface LeftSnapshot {
  readonly checkpointId: string;
  readonly snapshot: DiskSnapshot;
  /** What the operator can run, or do; empty when nobody here knows. */
  readonly remedy: string;
  /** Why it could not be removed; empty when nobody tried. */
  readonly why: string;
}

/** Who knows the disk snapshots of a manifest. @throws VM_UNSUPPORTED when nobody does */
export type DisksOfManifest = (manifest: Manifest) => RecordedDisks;

/** The disks of checkpoints of VMs that are not attached. */
export function disksOfStopped(hypervisors: HypervisorRegistry): DisksOfManifest {
  return ({ hypervisor: name, machine }) => {
    const disks = hypervisors.byName(name).recordedDisks?.(machine);
    if (disks !== undefined) return disks;
    throw new CheckpointError('VM_UNSUPPORTED', `the hypervisor "${name}" has no disk snapshots`);
  };
}

/** The disks of checkpoints of this VM. */
export function disksOfRunning(vm: Vm): DisksOfManifest {
  return ({ machine }) => vm.disks.recorded(machine);
}

/** The snapshots of these checkpoints, with what removes them by hand. Never throws. */
export function snapshotsOf(
  manifests: readonly Manifest[],
  disksOf: DisksOfManifest,
): readonly LeftSnapshot[] {
  return manifests.flatMap((manifest) =>
    manifest.disks.map((snapshot) => ({
      checkpointId: manifest.id,
      snapshot,
      remedy: remedyOf(manifest, snapshot, disksOf),
      why: '',
    })),
  );
}

/**
 * Removes those snapshots of these checkpoints that can be removed. Never throws.
 * @returns what stays behind
 */
export async function dropSnapshots(
  manifests: readonly Manifest[],
  disksOf: DisksOfManifest,
): Promise<readonly LeftSnapshot[]> {
  const left: LeftSnapshot[] = [];
  for (const manifest of manifests) {
    for (const found of snapshotsOf([manifest], disksOf)) {
      try {
        const disks = disksOf(manifest);
        if (disks.isRemovable(found.snapshot)) await disks.drop([found.snapshot]);
        else left.push(found);
      } catch (error) {
        left.push({ ...found, why: describeError(error) });
      }
    }
  }
  return left;
}

/** The checkpoint is gone by now: that its record is damaged must not hide the others. */
function remedyOf(manifest: Manifest, snapshot: DiskSnapshot, disksOf: DisksOfManifest): string {
  try {
    return disksOf(manifest).remedy(snapshot);
  } catch (error) {
    return `see to the snapshot of ${snapshot.path} by ${snapshot.driver}: ${describeError(error)}`;
  }
}

export interface DiskDropper {
  /** Removes those snapshots of these checkpoints that can be removed. @returns what stays behind */
  drop(manifests: readonly Manifest[]): Promise<readonly LeftSnapshot[]>;
  close(): Promise<void>;
}

/**
 * Opens what drops the snapshots. It is called before anything is forgotten: what cannot be reached is better
 * known then.
 * @param vmAddress of the running VM; undefined: it does not run
 * @throws what attaching throws, VM_LOCKED
 */
export async function openDiskDropper(
  hypervisors: HypervisorRegistry,
  vmAddress: string | undefined,
): Promise<DiskDropper> {
  if (vmAddress === undefined) {
    const disksOf = disksOfStopped(hypervisors);
    return { drop: (manifests) => dropSnapshots(manifests, disksOf), close: () => Promise.resolve() };
  }
  const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
  const vm = await hypervisors.forAddress(vmAddress).attach(vmAddress, { runtimeDir });
  try {
    const lock = await VmLock.take(vm, runtimeDir);
    return {
      drop: (manifests) => dropSnapshots(manifests, disksOfRunning(vm)),
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
