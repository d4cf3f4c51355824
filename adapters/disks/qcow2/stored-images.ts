/** Snapshots inside of images that no VM has open: qemu-img removes them, and takes none. */

import { CheckpointError, describeError } from '../../../src/errors.js';
import { nobodyTakes } from './images.js';
import { deleteSnapshot, imageInfo } from './qemu-img.js';
import { INTERNAL, type InternalSnapshot } from './qcow2-records.js';
import type { ImageSnapshots } from './snapshot-takers.js';

export const storedImages: ImageSnapshots = {
  describe: (disks) => Promise.resolve(disks),
  take: () => Promise.reject(nobodyTakes(INTERNAL)),
  drop: async (snapshots) => {
    const left: string[] = [];
    for (const snapshot of snapshots) {
      try {
        await dropOne(snapshot);
      } catch (error) {
        left.push(describeError(error));
      }
    }
    if (left.length > 0) throw new CheckpointError('DISK_SNAPSHOT_FAILED', left.join('; '));
  },
};

async function dropOne({ path, snapshotName }: InternalSnapshot): Promise<void> {
  const { snapshotNames } = await imageInfo(path, 'qcow2');
  if (snapshotNames.includes(snapshotName)) await deleteSnapshot(path, snapshotName);
}
