/**
 * Whether an object to which nothing leads is one of its chain. Name and place do not say so: a pack of
 * another chain, or a file of somebody else, may have come there by a copy that went wrong, and may be the
 * only one.
 */

import { FORMAT_VERSION } from '../../format/format-version.js';
import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import { seqOfKey } from '../../format/chain-keys.js';
import { isMark } from '../write/sequence-mark.js';

/** How headers of packs and of segments begin: magic 8, version 2, two bytes of their own, seq 4, owner 16. */
const HEAD_BYTES = 32;
const MAGIC = { pack: 'CAIRNPAK', segment: 'CAIRNIDX' } as const;

/** @param owner of the chain */
export async function isOfChain(
  backend: StorageBackend,
  object: StoredObject,
  kind: keyof typeof MAGIC,
  owner: Uint8Array,
  options: CallOptions,
): Promise<boolean> {
  if (await isMark(backend, object, options)) return true;
  if (object.sizeBytes < HEAD_BYTES) return false;
  const head = Buffer.from(
    await backend.load(object.key, { offsetBytes: 0, lengthBytes: HEAD_BYTES }, options),
  );
  return (
    head.toString('latin1', 0, 8) === MAGIC[kind] &&
    head.readUInt16LE(8) <= FORMAT_VERSION &&
    head.readUInt32LE(12) === seqOfKey(object.key) &&
    head.subarray(16).equals(owner)
  );
}

export function foreignText({ key }: StoredObject): string {
  return `${key} is not of this chain, or its header is damaged: it stays`;
}
