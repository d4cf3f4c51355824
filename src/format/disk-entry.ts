/**
 * A disk snapshot as JSON: the fields of the core and those of the driver, in one object (docs/format.md,
 * disks). In manifests, in records of this host, and in what commands print.
 */

import { diskFeature, type DiskSnapshot } from '../hypervisor/disks.js';
import type { JsonObject } from '../types.js';
import type { JsonFields } from '../records/json-fields.js';

const DRIVER = /^[a-z0-9][a-z0-9-]{0,30}$/;
const DISK_FEATURE = /^[a-z0-9][a-z0-9-]*-snapshot$/;
/**
 * Most bytes of all fields of the driver. A chain of a hundred images, each with the longest path that Linux
 * has, is within it.
 */
const MAX_DATA_BYTES = 1 << 20;
/** QEMU describes a disk on a network by JSON. */
const MAX_TEXT_LENGTH = 1 << 16;

export function diskEntry({ diskId, path, driver, data }: DiskSnapshot): JsonObject {
  return { diskId, path, mode: driver, ...data };
}

/**
 * Checks what the core knows of. The rest is the driver's to check when it reads it.
 * @param requires features of the manifest that it stands in
 * @throws REPO_DAMAGED
 */
export function readDiskEntry(json: JsonFields, requires: readonly string[] = []): DiskSnapshot {
  const diskId = plainText(json, 'diskId');
  const path = plainText(json, 'path');
  const driver = json.matching('mode', DRIVER);
  const data = json.rest(['diskId', 'path', 'mode']);
  if (JSON.stringify(data).length > MAX_DATA_BYTES)
    json.wrong('mode', 'of a reasonable size with its fields');
  const feature = diskFeature(driver);
  return {
    diskId,
    path,
    driver,
    data,
    recordedIn: json.key,
    ...(requires.includes(feature) ? { feature } : {}),
  };
}

/** No NUL: what becomes a path or an argument ends there for the system. */
function plainText(json: JsonFields, name: string): string {
  const text = json.text(name, MAX_TEXT_LENGTH);
  return text.includes('\0') ? json.wrong(name, 'free of NUL bytes') : text;
}

/** Any driver's: one that is not there is refused when its snapshot is needed, not when it is listed. */
export function isDiskFeature(feature: string): boolean {
  return DISK_FEATURE.test(feature);
}
