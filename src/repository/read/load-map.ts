/** Builds the page map of a checkpoint from its index segments. */

import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { ChainKeys, ownerTag } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import { decodeSegment, type IndexEntries } from '../../format/index-segment.js';
import { manifestKey, type Manifest, type SegmentEntry } from '../../format/manifest.js';
import { PageMap } from './page-map.js';
import { MAX_SEGMENTS } from '../../format/index-policy.js';
import { sha256Hex } from '../../format/sealed-json.js';

/** Segments fetched together: there are some twenty in a long chain. */
const LOADS_AT_A_TIME = 8;

export interface SegmentSource {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly chain: string;
  /** Page span of the checkpoint that names the segment. */
  readonly pageSpan: number;
}

/** @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws */
export async function loadSegment(
  source: SegmentSource,
  entry: SegmentEntry,
  options: CallOptions,
): Promise<IndexEntries> {
  const { backend, repositoryId, chain, pageSpan } = source;
  const key = new ChainKeys(chain).segment(entry.seq);
  let bytes: Uint8Array;
  try {
    const { sizeBytes } = await backend.stat(key, options);
    if (sizeBytes !== entry.sizeBytes) throw damaged(key, 'not the index segment that the manifest lists');
    bytes = await backend.load(key, undefined, options);
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_NOT_FOUND'))
      throw damaged(key, 'index segment is missing', {}, error);
    throw error;
  }
  if (bytes.length !== entry.sizeBytes || sha256Hex(bytes) !== entry.sha256) {
    throw damaged(key, 'not the index segment that the manifest lists');
  }
  const id = { seq: entry.seq, level: entry.level, owner: ownerTag(repositoryId, chain) };
  const entries = decodeSegment(key, bytes, id, pageSpan);
  if (entries.pages.length !== entry.entryCount) throw damaged(key, 'entry count differs from the manifest');
  return entries;
}

/**
 * The committed map of a checkpoint; caller owns it.
 * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
 */
export async function loadMap(
  backend: StorageBackend,
  repositoryId: string,
  manifest: Manifest,
  options: CallOptions,
): Promise<PageMap> {
  const { layout, segments, chain } = manifest;
  if (segments.length > MAX_SEGMENTS)
    throw damaged(manifestKey(manifest), 'more index segments than the format allows');
  const map = new PageMap(layout.pageSpan);
  const source = { backend, repositoryId, chain, pageSpan: layout.pageSpan };
  const oldestFirst = [...segments].reverse();
  for (let from = 0; from < oldestFirst.length; from += LOADS_AT_A_TIME) {
    const some = oldestFirst.slice(from, from + LOADS_AT_A_TIME);
    const loaded = await Promise.all(some.map((entry) => loadSegment(source, entry, options)));
    for (const { pages, refs, depths } of loaded)
      for (let i = 0; i < pages.length; i++) map.set(pages[i]!, refs[i]!, depths[i]!);
  }
  map.commit();
  return map;
}
