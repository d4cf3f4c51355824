/** The disks of a QEMU as its monitor lists them. Source: query-block of the QMP reference. */

import { resolve } from 'node:path';

import type { VmDisk } from '../../src/hypervisor/disks.js';
import type { Json, JsonObject } from '../../src/types.js';
import { imagePath, isLocalPath } from './image-names.js';
import type { Monitor } from './monitor.js';
import { asArray, asNumber, asObject, asText } from './qmp-json.js';

/**
 * Disks with a medium, in the order in which QEMU lists them, with no snapshot modes yet.
 * @param folder what relative paths of this QEMU start from; absent: its paths are absolute
 * @throws VM_GONE
 */
export async function listDisks(monitor: Monitor, folder?: string): Promise<readonly VmDisk[]> {
  const disks = disksOf(await monitor.execute('query-block'));
  if (folder === undefined) return disks;
  const absolute = (path: string): string =>
    isLocalPath(path) ? resolve(folder, path.replace(/^file:/, '')) : path;
  return disks.map((disk) => ({
    ...disk,
    path: absolute(disk.path),
    backingPaths: (disk.backingPaths ?? []).map(absolute),
  }));
}

/** The reply of query-block as disks. */
export function disksOf(reply: Json): readonly VmDisk[] {
  return asArray(reply).flatMap((device) => {
    const inserted = asObject(device.inserted);
    const image = asObject(inserted.image);
    // -drive names the device, -blockdev the node.
    const id = asText(device.device) || asText(inserted['node-name']);
    if (id === '' || inserted.drv === undefined) return [];
    return {
      id,
      path: imagePath(asText(image.filename) || asText(inserted.file)),
      format: asText(inserted.drv),
      writable: inserted.ro !== true,
      virtualSizeBytes: asNumber(image['virtual-size']),
      snapshotModes: [],
      ...(image.encrypted === true || inserted.encrypted === true ? { isEncrypted: true } : {}),
      backingPaths: backingPathsOf(image),
    };
  });
}

/**
 * Persistent dirty bitmaps in a reply of query-block, a text for each image that has some. Those that go with the QEMU are
 * no matter of a restore.
 */
export function bitmapsIn(reply: Json): readonly string[] {
  return asArray(reply).flatMap((device) => {
    const inserted = asObject(device.inserted);
    const names = asArray(inserted['dirty-bitmaps'] ?? null)
      .filter(({ persistent }) => persistent === true)
      .map(({ name }) => asText(name));
    return names.length === 0 ? [] : [`${names.join(', ')} of ${asText(inserted.file)}`];
  });
}

/** ImageInfo of qapi/block-core.json: each image holds the one below it. */
export function backingPathsOf(image: JsonObject): readonly string[] {
  const paths: string[] = [];
  for (
    let below = asObject(image['backing-image']);
    below.filename !== undefined;
    below = asObject(below['backing-image'])
  ) {
    paths.push(imagePath(asText(below.filename)));
  }
  return paths;
}
