/** Disks of a `FakeVm`, by the drivers that Cairn comes with as far as names and traits go; snapshots are names in the `FakeGuest`. */

import { DISK_DRIVERS } from '../../adapters/disks/disk-drivers.js';
import type { DiskSnapshot, RecordedDisks, VmDisk, VmDisks } from '../../src/hypervisor/disks.js';
import type { FakeVm } from './fake-vm.js';

export class FakeDisks implements VmDisks {
  readonly drivers = DISK_DRIVERS;
  readonly #vm: FakeVm;

  constructor(vm: FakeVm) {
    this.#vm = vm;
  }

  list(): Promise<readonly VmDisk[]> {
    return this.#vm.later('disks', () => this.#vm.guest.disks);
  }

  checkStorage(): Promise<boolean> {
    return this.#vm.later('checkStorage', () => false);
  }

  plan(name: string, disks: readonly VmDisk[], driver: string): readonly DiskSnapshot[] {
    return driver === 'rbd' ? disks.map((disk) => snapshotOf(disk, name, driver)) : [];
  }

  snapshot(name: string, disks: readonly VmDisk[], driver: string): Promise<readonly DiskSnapshot[]> {
    return this.#vm.later('snapshotDisks', () =>
      disks.map((disk) => {
        this.#vm.guest.snapshots.add(`${disk.id}@${name}`);
        return snapshotOf(disk, name, driver);
      }),
    );
  }

  makeDurable(): Promise<void> {
    return this.#vm.later('makeDurable', () => undefined);
  }

  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await this.#vm.later('dropDiskSnapshots', () => {
      for (const { diskId, data } of snapshots)
        this.#vm.guest.snapshots.delete(`${diskId}@${data.snapshotName as string}`);
    });
  }

  recorded(): RecordedDisks {
    return {
      isRemovable: ({ driver }) => driver !== 'external',
      drop: (snapshots) => this.drop(snapshots),
      remedy: ({ path }) => `see to ${path}`,
      needs: () => [],
      overwrites: () => undefined,
    };
  }
}

function snapshotOf({ id, path }: VmDisk, name: string, driver: string): DiskSnapshot {
  const data =
    driver === 'external'
      ? { snapshotName: '', overlayPath: `${path}.${name}` }
      : { snapshotName: name, overlayPath: '' };
  return { diskId: id, path, driver, data };
}
