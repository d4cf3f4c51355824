/** The disks of a domain, from its configuration. */

import type { VmDisk } from '../../../src/hypervisor/disks.js';
import type { JsonObject } from '../../../src/types.js';
import { DISK_DRIVERS } from '../../disks/disk-drivers.js';
import { LVM } from '../../disks/lvm/lvm-record.js';
import { EXTERNAL, INTERNAL } from '../../disks/qcow2/qcow2-records.js';
import { RBD } from '../../disks/rbd/rbd-record.js';
import { isSet, listOf, objectOf, textOf } from '../domain/xl.js';

/**
 * Xen has no call for snapshots: `qcow2-disks.ts` knows of those that QEMU can take, `adapters/disks/lvm` of
 * logical volumes.
 */
export function disksOf(config: JsonObject): readonly VmDisk[] {
  return listOf(config.disks).map((entry) => {
    const disk = objectOf(entry);
    return {
      id: textOf(disk.vdev),
      path: textOf(disk.pdev_path),
      format: textOf(disk.format) || 'raw',
      writable: isSet(disk.readwrite) && !isSet(disk.is_cdrom),
      virtualSizeBytes: 0,
      snapshotModes: [],
      ...(textOf(disk.pdev_path).startsWith('rbd:') ? { whyNoSnapshot: UNTRIED_DRIVERS[RBD]! } : {}),
    };
  });
}

const TRIED = [INTERNAL, EXTERNAL, LVM];

/**
 * Drivers that were not tried with Xen, with what is said of them: a new one is among them until somebody has
 * tried it. No checkpoint of a domain has such a snapshot: whoever meets one must not guess.
 */
export const UNTRIED_DRIVERS: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    DISK_DRIVERS.filter(({ name }) => !TRIED.includes(name)).map(({ name, medium }) => [
      name,
      `snapshots of ${medium} by ${name} were not tested with Xen`,
    ]),
  ),
  [RBD]: 'images of Ceph RBD were not tested with Xen',
};
