/**
 * Disk snapshots of domains that do not run. Snapshots in qcow2 images are not removed: the QEMU of a domain
 * opens images without locks, so that nobody can tell whether one is in use.
 */

import { CheckpointError } from '../../../src/errors.js';
import { DiskDrivers } from '../../disks/disk-drivers.js';
import { storedImages } from '../../disks/qcow2/stored-images.js';
import type { ImageSnapshots } from '../../disks/qcow2/snapshot-takers.js';
import { UNTRIED_DRIVERS } from './disks.js';
import { writersOf } from './image-writers.js';

const imagesOfDomains: ImageSnapshots = {
  ...storedImages,
  drop: () =>
    Promise.reject(
      new CheckpointError('DISK_SNAPSHOT_FAILED', 'whether a domain has the image open cannot be told'),
    ),
};

/**
 * libxl records absolute paths.
 * @param images for a restore, which has seen that nobody has them open
 */
export function disksOfStoppedDomain(images: ImageSnapshots = imagesOfDomains): DiskDrivers {
  return new DiskDrivers({ cwd: '/', images, refuseInUse, untried: UNTRIED_DRIVERS });
}

/** @throws RESTORE_TARGET_BUSY */
async function refuseInUse(path: string): Promise<void> {
  const writers = await writersOf(path);
  if (writers.length === 0) return;
  throw new CheckpointError(
    'RESTORE_TARGET_BUSY',
    `the disk ${path} is open for writing: ${writers.join(', ')}`,
    {
      hint: 'destroy the domain that uses it, name a copy with --disk, or leave the disks as they are with --keep-disks',
      detail: { path },
    },
  );
}
