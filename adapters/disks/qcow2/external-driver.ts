/**
 * Overlays on qcow2 images. The image at the checkpoint is never written again: the running VM writes to an
 * overlay on it, and a restored VM to another overlay, `<frozen>.cairn-restore-<id>.qcow2`. Only a merge
 * removes the snapshot, and that is the operator's.
 *
 *     base <- web (frozen by the checkpoint) <- web.cairn-ID           the VM that goes on
 *                                           <- web.cairn-restore-ID    the restored VM
 */

import { resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { DiskDriver, ForkedDisk, StandIn } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../../src/hypervisor/disks.js';
import type { DiskDriverKind, DiskMeans } from '../disk-means.js';
import { checkFrozenLayers, withFrozenLayers } from './frozen-layers.js';
import { nobodyTakes, refuseOpenForWriting, withMode } from './images.js';
import { overlayAt, overlayPathFor, putOverlayOn, refuseExisting } from './overlays.js';
import {
  EXTERNAL,
  externalRecord,
  externalSnapshot,
  movedLayers,
  type ExternalSnapshot,
} from './qcow2-records.js';

const TRAITS = { name: EXTERNAL, medium: 'qcow2', takenBy: 'hypervisor', isRemovable: false } as const;

export const externalDriver: DiskDriverKind = { ...TRAITS, open: (means) => new ExternalDriver(means) };

class ExternalDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #means: DiskMeans;

  constructor(means: DiskMeans) {
    this.#means = means;
  }

  describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    const { overlays } = this.#means;
    return Promise.resolve(overlays === undefined ? disks : disks.map((disk) => withMode(disk, EXTERNAL)));
  }

  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return planned(name, disks).map(externalRecord);
  }

  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const { overlays, cwd } = this.#means;
    if (overlays === undefined) throw nobodyTakes(EXTERNAL);
    const snapshots = planned(name, disks);
    await refuseExisting(snapshots);
    await overlays.take(snapshots);
    return (await withFrozenLayers(snapshots, disks, cwd)).map(externalRecord);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const left = snapshots.map((record) => `overlay ${externalSnapshot(record).overlayPath}`);
    throw new CheckpointError('DISK_SNAPSHOT_FAILED', `snapshots that stay: ${left.join('; ')}`, {
      hint: 'block-commit merges an overlay of a running VM',
    });
  }

  remedy(record: DiskSnapshot): string {
    const { path, overlayPath } = this.#absolute(record);
    return `merge ${overlayPath} into ${path} (blockcommit), if no other checkpoint needs ${path} as it is`;
  }

  needs(record: DiskSnapshot): readonly string[] {
    const { path, frozen = [] } = this.#absolute(record);
    return [path, ...frozen.map((layer) => layer.path)];
  }

  /** Nobody writes to the frozen image, so the overlays of all children stand on it. */
  fork(record: DiskSnapshot): ForkedDisk {
    const { diskId, path } = this.#absolute(record);
    return {
      ...{ diskId, path },
      check: () => this.check([record]),
      prepare: () => Promise.resolve(),
      standIn: (place) => overlayAt(`${place}.qcow2`, path, (format) => ({ base: path, format })),
    };
  }

  async check(records: readonly DiskSnapshot[]): Promise<void> {
    const snapshots = records.map((record) => this.#absolute(record));
    await checkFrozenLayers(snapshots);
    for (const { path, frozen } of snapshots) {
      // A commit into it that has just begun shows in the lock before it shows in the file.
      for (const layer of frozen?.map((one) => one.path) ?? [path]) await refuseOpenForWriting(layer);
      await this.#means.refuseInUse?.(path);
    }
  }

  rollBack(): Promise<void> {
    return Promise.resolve();
  }

  standIn(record: DiskSnapshot, checkpointId: string): StandIn {
    const { path } = this.#absolute(record);
    return { path, create: (format) => putOverlayOn(path, format, checkpointId) };
  }

  /**
   * What the operator puts in the place of an image is taken for the same; what lies below it is still what
   * was recorded.
   */
  movedTo(record: DiskSnapshot, path: string): DiskSnapshot {
    const snapshot = externalSnapshot(record);
    const below = snapshot.frozen?.filter((layer) => layer.path !== record.path);
    const moved = { ...snapshot, path, ...(below === undefined ? {} : { frozen: below }) };
    return { ...record, ...externalRecord(moved) };
  }

  /** The layers go with their folders. */
  movedBy(record: DiskSnapshot, move: (path: string) => string): DiskSnapshot {
    const { frozen, ...snapshot } = externalSnapshot(record);
    const moved = {
      ...snapshot,
      path: move(snapshot.path),
      overlayPath: move(snapshot.overlayPath),
      ...(frozen === undefined ? {} : { frozen: movedLayers(frozen, move) }),
    };
    return { ...record, ...externalRecord(moved) };
  }

  #absolute(record: DiskSnapshot): ExternalSnapshot {
    return { ...externalSnapshot(record), path: resolve(this.#means.cwd, record.path) };
  }
}

function planned(name: string, disks: readonly VmDisk[]): readonly ExternalSnapshot[] {
  return disks.map(({ id, path }) => ({ diskId: id, path, overlayPath: overlayPathFor(path, name) }));
}
