/**
 * Snapshots inside of images of a VM that is being restored: by qemu-img until the VM runs, then by its monitor. QEMU locks
 * the images that it writes to.
 */

import { resolve } from 'node:path';

import type { VmDisk } from '../../../src/hypervisor/disks.js';
import { listDisks } from '../../qemu/block-devices.js';
import type { Monitor } from '../../qemu/monitor.js';
import { nobodyTakes } from './images.js';
import { monitorImages } from './monitor-snapshots.js';
import { INTERNAL, type InternalSnapshot } from './qcow2-records.js';
import type { ImageSnapshots } from './snapshot-takers.js';
import { storedImages } from './stored-images.js';

export class RestoredImages implements ImageSnapshots {
  readonly #cwd: string;
  #monitor: Monitor | undefined;

  /** @param cwd what relative paths of the VM start from */
  constructor(cwd: string) {
    this.#cwd = cwd;
  }

  /** From now on the VM has its images open; undefined: it has ended. */
  set monitor(monitor: Monitor | undefined) {
    this.#monitor = monitor;
  }

  describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    return Promise.resolve(disks);
  }

  take(): Promise<void> {
    return Promise.reject(nobodyTakes(INTERNAL));
  }

  async drop(snapshots: readonly InternalSnapshot[]): Promise<void> {
    if (this.#monitor === undefined) return storedImages.drop(snapshots);
    const disks = await listDisks(this.#monitor, this.#cwd);
    // A node may have another name in each run of a VM.
    const idOf = ({ path, diskId }: InternalSnapshot): string =>
      disks.find((disk) => resolve(this.#cwd, disk.path) === path)?.id ?? diskId;
    await monitorImages(this.#monitor).drop(snapshots.map((one) => ({ ...one, diskId: idOf(one) })));
  }
}
