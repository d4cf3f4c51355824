/**
 * The disks of a checkpoint whose snapshots are external, for a restore through libvirt: the frozen image is
 * never written, a new overlay on it takes its place in the domain, and in the definition that libvirt keeps
 * of it, since that one names what the domain wrote to after the checkpoint.
 */

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { StandIn } from '../../../src/hypervisor/disk-driver.js';
import { removeStandIns } from '../../disks/disk-drivers.js';
import { disksIn, withDisk } from '../xml/domain-disks.js';
import type { LibvirtDomain } from '../domain.js';

export interface OverlaidDomain {
  readonly xml: string;
  /** Target of the disk -> its new image. To be removed when the restore fails. */
  readonly overlays: ReadonlyMap<string, string>;
}

/** @throws RESTORE_FAILED with no overlay left behind */
export async function overlayDisks(xml: string, standIns: readonly StandIn[]): Promise<OverlaidDomain> {
  const overlays = new Map<string, string>();
  let changed = xml;
  try {
    for (const standIn of standIns) {
      const { path } = standIn;
      const disk = disksIn(changed).find((candidate) => candidate.path === path);
      if (disk === undefined) {
        throw new CheckpointError('RESTORE_FAILED', `no disk of the domain is ${path}`, {
          hint: 'put an overlay on it yourself, name it with --disk, and pass --keep-disks',
        });
      }
      const overlay = await standIn.create(disk.format);
      overlays.set(disk.target, overlay);
      changed = withDisk(changed, disk.target, overlay, 'qcow2');
    }
    return { xml: changed, overlays };
  } catch (error) {
    await removeStandIns(overlays.values());
    throw error;
  }
}

/** Has the kept definition name the new images too. Best effort: the domain runs by now. */
export async function followInDefinition(
  domain: LibvirtDomain,
  overlays: OverlaidDomain['overlays'],
): Promise<void> {
  if (overlays.size === 0) return;
  try {
    if (!(await domain.isPersistent())) return;
    let xml = await domain.definition();
    for (const [target, overlay] of overlays) xml = withDisk(xml, target, overlay, 'qcow2');
    await domain.define(xml);
  } catch (error) {
    process.emitWarning(
      `the definition of ${domain.name} still names the disks from before the restore: ${describeError(error)}`,
    );
  }
}
