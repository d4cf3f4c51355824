/** What a checkpoint records of a clone of an image (docs/format.md, disks), read back with care. */

import type { JsonFields } from '../../../src/records/json-fields.js';
import { diskFeature, type DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { JsonObject } from '../../../src/types.js';
import { fieldsOf } from '../record-fields.js';
import type { FrozenLayer } from '../qcow2/qcow2-records.js';

export const REFLINK = 'reflink';

export interface CloneSnapshot {
  readonly diskId: string;
  /** The path by which the hypervisor names the image. */
  readonly path: string;
  /** The image, absolute and without symbolic links. */
  readonly imagePath: string;
  /** `raw` or `qcow2` */
  readonly format: string;
  /** The clone, beside the image. */
  readonly clonePath: string;
  /** The clone and what lies below the image, as they were then. Absent in a plan. */
  readonly frozen?: readonly FrozenLayer[];
}

const ABSOLUTE_PATH = /^\/[^\0]*$/;
const NANOSECONDS = /^-?[0-9]{1,20}$/;

export function clonePathFor(imagePath: string, checkpoint: string): string {
  return `${imagePath}.cairn-${checkpoint}`;
}

export function cloneRecord({
  diskId,
  path,
  imagePath,
  format,
  clonePath,
  frozen,
}: CloneSnapshot): DiskSnapshot {
  const layers = frozen?.map((layer): JsonObject => ({ ...layer }));
  const data = { imagePath, format, clonePath, ...(layers === undefined ? {} : { frozen: layers }) };
  return { diskId, path, driver: REFLINK, data, feature: diskFeature(REFLINK) };
}

/** @throws REPO_DAMAGED, also for a clone by another name than that of one: such a file is never removed */
export function cloneSnapshot(record: DiskSnapshot): CloneSnapshot {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  const imagePath = fields.matching('imagePath', ABSOLUTE_PATH);
  const clonePath = fields.matching('clonePath', ABSOLUTE_PATH);
  const ending = clonePath.startsWith(imagePath) ? clonePath.slice(imagePath.length) : '';
  if (!/^\.cairn-[0-9A-Za-z-]+$/.test(ending)) fields.wrong('clonePath', 'the name of a clone');
  return {
    diskId,
    path,
    imagePath,
    format: fields.oneOf('format', ['raw', 'qcow2']),
    clonePath,
    ...(fields.has('frozen') ? { frozen: fields.list('frozen', frozenLayer) } : {}),
  };
}

function frozenLayer(fields: JsonFields): FrozenLayer {
  return {
    path: fields.matching('path', ABSOLUTE_PATH),
    sizeBytes: fields.count('sizeBytes'),
    mtimeNs: fields.matching('mtimeNs', NANOSECONDS),
  };
}
