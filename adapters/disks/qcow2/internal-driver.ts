/**
 * Snapshots inside of qcow2 images. The VM goes on writing to its image; a restore rolls the image back,
 * which writes to it, so it does that only when all memory has been read and verified. A QEMU that waits for
 * its stream has the image open by then, inactive as in any incoming migration: it holds no locks against
 * that, and reads the metadata anew when the stream ends.
 */

import { resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { DiskDriver } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, OverwrittenFile, VmDisk } from '../../../src/hypervisor/disks.js';
import type { DiskDriverKind, DiskMeans } from '../disk-means.js';
import { quoted } from '../shell-quote.js';
import { nobodyTakes, refuseOpenForWriting, withMode } from './images.js';
import { applySnapshot, imageInfo } from './qemu-img.js';
import { INTERNAL, internalRecord, internalSnapshot, type InternalSnapshot } from './qcow2-records.js';

/**
 * Up to this virtual size the snapshot is internal by itself. An internal qcow2 snapshot copies the L1 table
 * and raises the refcount of every mapped cluster inside the pause: 2 to 6 ms for a 4 GiB image, 26 ms for a
 * fully mapped one of 20 GiB, 144 ms for 100 GiB. An external one costs the same few milliseconds at any size
 * but leaves a chain of files to look after.
 */
export const INTERNAL_LIMIT_BYTES = 16 * 2 ** 30;

const TRAITS = {
  name: INTERNAL,
  medium: 'qcow2',
  takenBy: 'hypervisor',
  autoLimitBytes: INTERNAL_LIMIT_BYTES,
  isRemovable: true,
} as const;

export const internalDriver: DiskDriverKind = { ...TRAITS, open: (means) => new InternalDriver(means) };

class InternalDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly autoLimitBytes = TRAITS.autoLimitBytes;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #means: DiskMeans;

  constructor(means: DiskMeans) {
    this.#means = means;
  }

  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    const { images } = this.#means;
    if (images === undefined) return disks;
    return images.describe?.(disks) ?? disks.map((disk) => withMode(disk, INTERNAL));
  }

  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return planned(name, disks).map(internalRecord);
  }

  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const { images } = this.#means;
    if (images === undefined) throw nobodyTakes(INTERNAL);
    await images.take(planned(name, disks));
    return this.plan(name, disks);
  }

  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const { images } = this.#means;
    if (images === undefined) throw nobodyTakes(INTERNAL);
    await images.drop(snapshots.map((record) => this.#absolute(record)));
  }

  remedy(record: DiskSnapshot): string {
    const { path, snapshotName } = this.#absolute(record);
    return `qemu-img snapshot -d ${quoted(snapshotName)} ${quoted(path)}`;
  }

  overwrites(record: DiskSnapshot): OverwrittenFile {
    const { path, snapshotName } = this.#absolute(record);
    return { path, instead: `qemu-img convert -l snapshot.name=${snapshotName} -O qcow2 ${path} NEW` };
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { path, snapshotName } of snapshots.map((record) => this.#absolute(record))) {
      const { snapshotNames } = await imageInfo(path, 'qcow2');
      if (!snapshotNames.includes(snapshotName)) {
        throw new CheckpointError(
          'RESTORE_FAILED',
          `the disk ${path} has no snapshot ${snapshotName} any more`,
          {
            hint: '--keep-disks restores memory and devices alone, which is only right with disks of the same instant',
          },
        );
      }
      await refuseOpenForWriting(path, true);
      await this.#means.refuseInUse?.(path);
    }
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { path, snapshotName } of snapshots.map((record) => this.#absolute(record)))
      await applySnapshot(path, snapshotName);
  }

  /** What the operator puts in the place of an image is taken for the same. */
  movedTo(record: DiskSnapshot, path: string): DiskSnapshot {
    return { ...record, path };
  }

  #absolute(record: DiskSnapshot): InternalSnapshot {
    return { ...internalSnapshot(record), path: resolve(this.#means.cwd, record.path) };
  }
}

function planned(name: string, disks: readonly VmDisk[]): readonly InternalSnapshot[] {
  return disks.map(({ id, path }) => ({ diskId: id, path, snapshotName: `cairn-${name}` }));
}
