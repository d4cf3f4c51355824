/** The disks of a domain, from its configuration. */

import type { VmDisk } from '../../../src/hypervisor/disks.js';
import type { JsonObject } from '../../../src/types.js';
import { RBD } from '../../disks/rbd/rbd-record.js';
import { isSet, listOf, objectOf, textOf } from '../domain/xl.js';

/** Xen has no call for snapshots: `qcow2-disks.ts` knows of those that QEMU can take, `adapters/disks/lvm` of logical volumes. */
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

/** Drivers that were not tried with Xen. No checkpoint of a domain has such a snapshot: whoever meets one must not guess. */
export const UNTRIED_DRIVERS: Readonly<Record<string, string>> = {
  [RBD]: 'images of Ceph RBD were not tested with Xen',
};
