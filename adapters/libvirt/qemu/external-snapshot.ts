/**
 * External snapshots of a domain's disks, taken by libvirt: its XML then names the overlays, and `virsh
 * domblklist`, `virsh snapshot-create-as` and `virsh blockcommit` go on from there. libvirt keeps no
 * snapshot metadata for them: the checkpoint is in the repository, and a domain with metadata can neither be
 * undefined nor, before libvirt 9.9, have such a snapshot deleted.
 *
 * Internal snapshots stay with QEMU's own command: libvirt takes one of a running domain only together
 * with its memory. They change no chain of images, so there is nothing for libvirt to follow.
 */

import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { EXTERNAL, type ExternalSnapshot } from '../../disks/qcow2/qcow2-records.js';
import type { OverlaySnapshots } from '../../disks/qcow2/snapshot-takers.js';
import { disksIn } from '../xml/domain-disks.js';
import type { LibvirtDomain } from '../domain.js';
import { escaped } from '../xml/xml-text.js';
import { parseXml, withAllBelow } from '../xml/xml-document.js';

const HINT = 'virsh domblklist shows the images that the domain uses; remove no overlay that it writes to';

/** The part of a domain that is needed here. */
export type SnapshotTarget = Pick<LibvirtDomain, 'snapshotDisks' | 'xml'>;

/** @param domainXml as it was read last */
export function libvirtOverlays(domain: SnapshotTarget, domainXml: () => string): OverlaySnapshots {
  return { take: (snapshots) => snapshotExternally(domain, domainXml(), snapshots) };
}

/** @throws DISK_SNAPSHOT_FAILED with nothing left behind but what the domain writes to, VM_GONE */
async function snapshotExternally(
  domain: SnapshotTarget,
  domainXml: string,
  snapshots: readonly ExternalSnapshot[],
): Promise<void> {
  try {
    await domain.snapshotDisks(snapshotXml(domainXml, snapshots));
  } catch (error) {
    if (isCheckpointError(error, 'VM_GONE')) throw error;
    const possiblyPresent = await removeUnused(domain, snapshots);
    throw new CheckpointError(
      'DISK_SNAPSHOT_FAILED',
      `snapshot of ${snapshots.map(({ path }) => path).join(', ')}: ${describeError(error)}`,
      {
        cause: error,
        detail: { disks: snapshots.map(({ diskId }) => diskId), mode: EXTERNAL, possiblyPresent },
        ...(possiblyPresent.length === 0 ? {} : { hint: HINT }),
      },
    );
  }
}

/**
 * An error does not say that nothing was done: the answer may be lost while the domain already writes to the
 * overlays. So libvirt is asked which images the domain has now; when it does not say, all are kept.
 * @returns the overlays that are there and were kept
 */
async function removeUnused(
  domain: SnapshotTarget,
  snapshots: readonly ExternalSnapshot[],
): Promise<readonly string[]> {
  const inUse = await domain
    .xml()
    .then(filesIn)
    .catch(() => undefined);
  const kept: string[] = [];
  for (const { overlayPath } of snapshots) {
    if (inUse?.has(overlayPath) === false) await rm(overlayPath, { force: true });
    else if (existsSync(overlayPath)) kept.push(overlayPath);
  }
  return kept;
}

/** Sources of disks and of the chains below them. */
function filesIn(xml: string): ReadonlySet<string> {
  const elements = [...withAllBelow(parseXml(xml, 'the XML of the domain'))];
  return new Set(elements.flatMap(({ attribute }) => attribute('file') ?? []));
}

/** @throws DISK_SNAPSHOT_FAILED for a disk that the domain does not have */
export function snapshotXml(domainXml: string, snapshots: readonly ExternalSnapshot[]): string {
  const disks = disksIn(domainXml);
  const unknown = snapshots.find(({ path }) => !disks.some((disk) => disk.path === path));
  if (unknown !== undefined) {
    throw new CheckpointError('DISK_SNAPSHOT_FAILED', `no disk of the domain is ${unknown.path}`);
  }
  const elements = disks.map(({ target, path }) => {
    const snapshot = snapshots.find((candidate) => candidate.path === path);
    // A disk that is not named would be snapshotted too.
    if (snapshot === undefined) return `<disk name='${escaped(target)}' snapshot='no'/>`;
    return (
      `<disk name='${escaped(target)}' snapshot='external' type='file'>` +
      `<driver type='qcow2'/><source file='${escaped(snapshot.overlayPath)}'/></disk>`
    );
  });
  return `<domainsnapshot><disks>${elements.join('')}</disks></domainsnapshot>`;
}
