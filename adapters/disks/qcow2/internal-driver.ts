/**
 * Snapshots inside of qcow2 images. The VM goes on writing to its image; a restore rolls the image back,
 * which writes to it, so it does that only when all memory has been read and verified. A QEMU that waits for
 * its stream has the image open by then, inactive as in any incoming migration: it holds no locks against
 * that, and reads the metadata anew when the stream ends.
 */

import { constants } from 'node:fs';
import { access, stat, statfs } from 'node:fs/promises';
import { resolve } from 'node:path';

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { DiskDriver, ForkedDisk } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, OverwrittenFile, VmDisk } from '../../../src/hypervisor/disks.js';
import type { DiskDriverKind, DiskMeans } from '../disk-means.js';
import { BEFORE } from '../rolled-back.js';
import { quoted } from '../shell-quote.js';
import { diskLost } from '../snapshot-errors.js';
import { bitmapsText, keepBitmaps, withBitmapsAside, type KeptBitmaps } from './bitmaps.js';
import { nobodyTakes, refuseOpenForWriting, withMode } from './images.js';
import { overlayAt } from './overlays.js';
import {
  applySnapshot,
  copySnapshot,
  deleteSnapshot,
  imageInfo,
  takeSnapshot,
  type ImageInfo,
} from './qemu-img.js';
import { INTERNAL, internalRecord, internalSnapshot, type InternalSnapshot } from './qcow2-records.js';

/**
 * Up to this virtual size the snapshot is internal by itself. An internal qcow2 snapshot copies the L1 table
 * and raises the refcount of every mapped cluster inside the pause: 2 to 6 ms for a 4 GiB image, 26 ms for a
 * fully mapped one of 20 GiB, 144 ms for 100 GiB. An external one costs the same few milliseconds at any size
 * but leaves a chain of files to look after.
 */
export const INTERNAL_LIMIT_BYTES = 16 * 2 ** 30;

/** Of a snapshot's tables: refcounts, the list of snapshots, what is written anew beside what is there. */
const SPARE_CLUSTERS = 16;

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
  /** Of images as they were before they were put back, by the name of the snapshot and the path. */
  readonly #keptBitmaps = new Map<string, KeptBitmaps>();

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
    const dropped = snapshots.map((record) => this.#absolute(record));
    for (const one of dropped) {
      await this.#keptBitmaps.get(keyOf(one))?.remove();
      this.#keptBitmaps.delete(keyOf(one));
    }
    await images.drop(dropped);
  }

  remedy(record: DiskSnapshot): string {
    const { path, snapshotName } = this.#absolute(record);
    return `qemu-img snapshot -d ${quoted(snapshotName)} ${quoted(path)}`;
  }

  overwrites(record: DiskSnapshot): OverwrittenFile {
    const { path, snapshotName } = this.#absolute(record);
    return { path, instead: `qemu-img convert -l snapshot.name=${snapshotName} -O qcow2 ${path} NEW` };
  }

  /**
   * The VM goes on writing to the image, and forgetting the checkpoint removes the snapshot: what the children stand on
   * is a copy, which is made once for all of them. The clusters of a snapshot are not written to.
   */
  fork(record: DiskSnapshot): ForkedDisk {
    const snapshot = this.#absolute(record);
    const { diskId, path, snapshotName } = snapshot;
    let base = '';
    return {
      ...{ diskId, path },
      check: async () => {
        await intactImage(snapshot);
      },
      prepare: async (place) => {
        base = `${place}.qcow2`;
        await copySnapshot(path, snapshotName, base);
      },
      standIn: (place) => overlayAt(`${place}.qcow2`, path, () => ({ base, format: 'qcow2' })),
    };
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const found: Found[] = [];
    for (const snapshot of snapshots.map((record) => this.#absolute(record))) {
      const { path } = snapshot;
      found.push({ path, info: await intactImage(snapshot) });
      await refuseOpenForWriting(path, true);
      await this.#means.refuseInUse?.(path);
      await refuseReadOnly(path);
    }
    await refuseFull(found);
  }

  async consequences(snapshots: readonly DiskSnapshot[]): Promise<readonly string[]> {
    const texts: string[] = [];
    for (const { path } of snapshots.map((record) => this.#absolute(record))) {
      const { bitmaps, snapshotNames } = await imageInfo(path, 'qcow2');
      if (bitmaps.length > 0) texts.push(bitmapsText(path, bitmaps));
      const left = snapshotNames.filter((name) => name.startsWith(`cairn-${BEFORE}`));
      if (left.length > 0)
        texts.push(
          `a restore that was cut off has left what ${path} was before it (${left.join(', ')}): qemu-img snapshot -a puts it back, -d removes it`,
        );
    }
    return texts;
  }

  /** Another snapshot inside of the image, which costs no room to speak of. */
  async keep(name: string, snapshots: readonly DiskSnapshot[]): Promise<readonly DiskSnapshot[]> {
    const kept: DiskSnapshot[] = [];
    try {
      for (const record of snapshots) {
        const { diskId, path } = this.#absolute(record);
        const before = { diskId, path, snapshotName: `cairn-${name}` };
        const info = await imageInfo(path, 'qcow2');
        if (info.bitmaps.length > 0) this.#keptBitmaps.set(keyOf(before), await keepBitmaps(path, info));
        kept.push(internalRecord(before));
        await takeSnapshot(path, before.snapshotName);
      }
      return kept;
    } catch (error) {
      await this.#forget(kept);
      throw error;
    }
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const snapshot of snapshots.map((record) => this.#absolute(record))) {
      const { path, snapshotName } = snapshot;
      const info = await imageInfo(path, 'qcow2');
      const kept = this.#keptBitmaps.get(keyOf(snapshot));
      await withBitmapsAside(path, info, () => applySnapshot(path, snapshotName), kept);
    }
  }

  /** The last of them may not be there. */
  async #forget(kept: readonly DiskSnapshot[]): Promise<void> {
    for (const before of kept.map(internalSnapshot)) {
      await this.#keptBitmaps.get(keyOf(before))?.remove();
      this.#keptBitmaps.delete(keyOf(before));
      const isThere = await imageInfo(before.path, 'qcow2')
        .then(({ snapshotNames }) => snapshotNames.includes(before.snapshotName))
        .catch(() => false);
      if (isThere)
        await deleteSnapshot(before.path, before.snapshotName).catch((error: unknown) =>
          process.emitWarning(describeError(error)),
        );
    }
  }

  /** What the operator puts in the place of an image is taken for the same. */
  movedTo(record: DiskSnapshot, path: string): DiskSnapshot {
    return { ...record, path };
  }

  movedBy(record: DiskSnapshot, move: (path: string) => string): DiskSnapshot {
    return { ...record, path: move(record.path) };
  }

  #absolute(record: DiskSnapshot): InternalSnapshot {
    return { ...internalSnapshot(record), path: resolve(this.#means.cwd, record.path) };
  }
}

/** @throws RESTORE_FAILED when the snapshot cannot be had any more */
async function intactImage({ path, snapshotName }: InternalSnapshot): Promise<ImageInfo> {
  const info = await imageInfo(path, 'qcow2');
  if (!info.snapshotNames.includes(snapshotName))
    throw diskLost(`the disk ${path} has no snapshot ${snapshotName} any more`);
  if (info.isCorrupt)
    throw diskLost(
      `QEMU has found the image ${path} damaged`,
      'qemu-img check -r all repairs what can be repaired',
    );
  return info;
}

interface Found {
  readonly path: string;
  readonly info: ImageInfo;
}

function keyOf({ snapshotName, path }: Pick<InternalSnapshot, 'snapshotName' | 'path'>): string {
  return `${snapshotName}\0${path}`;
}

/** Also a file that nobody may write to (chattr +i), and a file system that is mounted for reading alone. */
async function refuseReadOnly(path: string): Promise<void> {
  try {
    await access(path, constants.W_OK);
  } catch (cause) {
    throw new CheckpointError(
      'RESTORE_FAILED',
      `the image ${path} cannot be written: ${describeError(cause)}`,
      {
        cause,
        hint: 'a rollback writes to it: give it back its rights (lsattr, mount), or restore with --keep-disks',
      },
    );
  }
}

/** Keeping the state before and going back take two tables of clusters, and some clusters of other metadata. */
async function refuseFull(images: readonly Found[]): Promise<void> {
  const needed = new Map<number, number>();
  for (const { path, info } of images) {
    const { dev, isFile } = await stat(path).then((found) => ({ dev: found.dev, isFile: found.isFile() }));
    if (!isFile) continue;
    const entries = Math.ceil(info.virtualSizeBytes / (info.clusterBytes * (info.clusterBytes / 8)));
    const sum = (needed.get(dev) ?? 0) + 2 * entries * 8 + SPARE_CLUSTERS * info.clusterBytes;
    needed.set(dev, sum);
    const { bavail, bsize } = await statfs(path);
    if (bavail * bsize >= sum) continue;
    throw diskLost(
      `the file system of ${path} has no room for a rollback: ${Math.ceil(sum / 1024)} KiB`,
      'free space there, and restore again',
    );
  }
}

function planned(name: string, disks: readonly VmDisk[]): readonly InternalSnapshot[] {
  return disks.map(({ id, path }) => ({ diskId: id, path, snapshotName: `cairn-${name}` }));
}
