/**
 * Which disks `snapshot-load` takes back together with the device state: those with a snapshot of the checkpoint inside
 * of their image. A disk that stays at the present while the guest's memory goes back is lost, so every disk that the
 * guest can write to has to be among them.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { Json } from '../../../src/types.js';
import { INTERNAL, internalSnapshot } from '../../disks/qcow2/qcow2-records.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';
import { refused } from './refused.js';

export interface RolledDisks {
  /** Names of the nodes, for `snapshot-load`. */
  readonly nodes: readonly string[];
  /** The one name that the snapshots have in all of them; undefined without a disk. */
  readonly tag: string | undefined;
  /** For the operator. */
  readonly texts: readonly string[];
}

/**
 * @param reply of query-block
 * @throws DISK_NOT_COVERED, REWIND_REFUSED, REPO_DAMAGED
 */
export function rolledDisks(
  reply: Json,
  snapshots: readonly DiskSnapshot[],
  keepDisks: boolean,
): RolledDisks {
  if (keepDisks) return { nodes: [], tag: undefined, texts: [] };
  const nodes: string[] = [];
  const tags = new Set<string>();
  const texts: string[] = [];
  const left = new Map(snapshots.map((snapshot) => [snapshot.diskId, snapshot]));
  for (const device of asArray(reply)) {
    const inserted = asObject(device.inserted);
    const node = asText(inserted['node-name']);
    const id = asText(device.device) || node;
    const snapshot = left.get(id);
    left.delete(id);
    if (inserted.drv === undefined || inserted.ro === true) continue;
    if (snapshot?.driver !== INTERNAL) throw notCovered(id, snapshot);
    const { snapshotName, path } = internalSnapshot(snapshot);
    const names = asArray(asObject(inserted.image).snapshots ?? null).map(({ name }) => asText(name));
    if (!names.includes(snapshotName)) {
      throw refused('DISK_SNAPSHOT_GONE', `the disk ${id} has no snapshot ${snapshotName} any more`, {
        hint: 'its image was exchanged, or the snapshot removed: cairn restore brings the VM back elsewhere, --keep-disks leaves the disks as they are',
        detail: { disk: id },
      });
    }
    if (asArray(inserted['dirty-bitmaps'] ?? null).length > 0) {
      throw refused('DISK_BITMAPS', `the disk ${id} has dirty bitmaps, and QEMU does not roll it back`, {
        hint: 'remove them (block-dirty-bitmap-remove), and take a full backup afterwards',
        detail: { disk: id },
      });
    }
    nodes.push(node);
    tags.add(snapshotName);
    texts.push(`${id}: ${INTERNAL} ${path}`);
  }
  const [gone] = left.keys();
  if (gone !== undefined) {
    throw refused(
      'DISK_GONE',
      `the VM has no disk ${gone} any more, of which the checkpoint has a snapshot`,
      {
        hint: 'plug it in again, or use cairn restore',
        detail: { disk: gone },
      },
    );
  }
  const [tag, ...others] = tags;
  if (others.length > 0)
    throw refused('DISK_SNAPSHOT_NAMES', 'the disk snapshots of the checkpoint have several names', {
      hint: 'use cairn restore',
    });
  return { nodes, tag, texts };
}

function notCovered(id: string, snapshot: DiskSnapshot | undefined): CheckpointError {
  const why =
    snapshot === undefined
      ? `the checkpoint has no snapshot of the disk ${id}, which the guest can write to`
      : `the disk ${id} has a snapshot of the driver ${snapshot.driver}, which cannot be put back while the VM has it open`;
  return new CheckpointError('DISK_NOT_COVERED', `${why}: memory and disk would be of two moments`, {
    hint: 'take checkpoints with snapshots inside of qcow2 images (--disks internal); cairn restore starts another QEMU; --keep-disks says that the disk may stay as it is',
    detail: { disk: id },
  });
}
