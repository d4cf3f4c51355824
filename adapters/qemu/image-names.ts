/**
 * What QEMU calls an image, and the file that is meant by it. An image that was opened with other options than its name
 * tells has a name made of all of them:
 *
 *     /srv/web.qcow2
 *     json:{"driver": "qcow2", "backing": {...}, "file": {"driver": "file", "filename": "/srv/web.qcow2"}}
 *
 * Source: bdrv_refresh_filename of QEMU's block.c.
 */

import type { Json, JsonObject } from '../../src/types.js';
import { asObject, asText } from './qmp-json.js';

const JSON_NAME = 'json:';
/** Such as `json:{...}` and `nbd://host/disk`. QEMU takes a path with or without `file:`. */
const NO_LOCAL_PATH = /^(?!file:)[a-z][a-z0-9+.-]*:/i;
/** Greatest length of a name in QEMU. */
const MAX_NAME_BYTES = 4096;
/** A format or filter on a protocol, with a few filters at most. */
const MAX_LAYERS = 8;

/** Whether the name of an image is a path of the host. */
export function isLocalPath(name: string): boolean {
  return name !== '' && !NO_LOCAL_PATH.test(name);
}

/** As QEMU calls what it makes for -snapshot, and removes the name of at once (create_tmp_file of block.c). */
const TEMPORARY_IMAGE = /\/vl\.[A-Za-z0-9]{6}$/;

/** Whether the guest's changes go to an image that ends with QEMU. */
export function isTemporaryImage(path: string): boolean {
  return TEMPORARY_IMAGE.test(path);
}

/** The path of the file, as QEMU has it; the name itself when it leads to no single file of the host. */
export function imagePath(name: string): string {
  if (!name.startsWith(JSON_NAME) || name.length > MAX_NAME_BYTES) return name;
  let node = parsed(name.slice(JSON_NAME.length));
  for (let layer = 0; layer < MAX_LAYERS; layer++) {
    const path = asText(node.filename) || asText(node['file.filename']);
    const driver = asText(node.filename) === '' ? asText(node['file.driver']) || 'file' : asText(node.driver);
    if (path !== '') return driver === 'file' ? path : name;
    node = asObject(node.file);
  }
  return name;
}

function parsed(text: string): JsonObject {
  try {
    return asObject(JSON.parse(text) as Json);
  } catch {
    return {};
  }
}
