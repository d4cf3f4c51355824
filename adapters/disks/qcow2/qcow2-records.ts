/** What a checkpoint records of snapshots of qcow2 images (docs/format.md, disks), read back with care. */

import type { JsonFields } from '../../../src/records/json-fields.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { JsonObject } from '../../../src/types.js';
import { fieldsOf } from '../record-fields.js';

/** A snapshot inside of the image at `path`. */
export interface InternalSnapshot {
  readonly diskId: string;
  readonly path: string;
  readonly snapshotName: string;
}

/** `path` holds the state at the checkpoint, and the running VM writes to the overlay from then on. */
export interface ExternalSnapshot {
  readonly diskId: string;
  readonly path: string;
  readonly overlayPath: string;
  /**
   * `path` and what lies below it, as they were then. Absent in checkpoints of versions that did not record
   * it.
   */
  readonly frozen?: readonly FrozenLayer[];
}

/** A file that a checkpoint needs unchanged, and what shows that it is. */
export interface FrozenLayer {
  /** Absolute. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Time of the last write in nanoseconds since 1970, decimal: more than a number holds. */
  readonly mtimeNs: string;
}

export const INTERNAL = 'internal';
export const EXTERNAL = 'external';

const ABSOLUTE_PATH = /^\/[^\0]*$/;
const NANOSECONDS = /^-?[0-9]{1,20}$/;

export function internalRecord({ diskId, path, snapshotName }: InternalSnapshot): DiskSnapshot {
  return { diskId, path, driver: INTERNAL, data: { snapshotName, overlayPath: '' } };
}

export function externalRecord({ diskId, path, overlayPath, frozen }: ExternalSnapshot): DiskSnapshot {
  const layers = frozen?.map((layer): JsonObject => ({ ...layer }));
  const data = { snapshotName: '', overlayPath, ...(layers === undefined ? {} : { frozen: layers }) };
  return { diskId, path, driver: EXTERNAL, data };
}

/** @throws REPO_DAMAGED */
export function internalSnapshot(record: DiskSnapshot): InternalSnapshot {
  const { diskId, path } = record;
  return { diskId, path, snapshotName: fieldsOf(record).text('snapshotName') };
}

/** @throws REPO_DAMAGED */
export function externalSnapshot(record: DiskSnapshot): ExternalSnapshot {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  return {
    diskId,
    path,
    overlayPath: fields.text('overlayPath'),
    ...(fields.has('frozen') ? { frozen: fields.list('frozen', frozenLayer) } : {}),
  };
}

/** What showed that they are unchanged still does: a move keeps size and time. */
export function movedLayers(
  layers: readonly FrozenLayer[],
  move: (path: string) => string,
): readonly FrozenLayer[] {
  return layers.map((layer) => ({ ...layer, path: move(layer.path) }));
}

function frozenLayer(fields: JsonFields): FrozenLayer {
  return {
    path: fields.matching('path', ABSOLUTE_PATH),
    sizeBytes: fields.count('sizeBytes'),
    mtimeNs: fields.matching('mtimeNs', NANOSECONDS),
  };
}
