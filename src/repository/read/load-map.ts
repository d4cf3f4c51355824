/** Builds the page map of a checkpoint from its index, window by window. */

import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import type { Manifest } from '../../format/manifest.js';
import { PageIndex } from './page-index.js';
import { PageMap } from './page-map.js';

/**
 * The committed map of a checkpoint; caller owns it. It costs by the size of the memory: to read, ask the
 * index instead.
 * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
 */
export async function loadMap(
  backend: StorageBackend,
  repositoryId: string,
  manifest: Manifest,
  options: CallOptions,
): Promise<PageMap> {
  const map = new PageMap(manifest.layout.pageSpan);
  const index = await PageIndex.open({ backend, repositoryId }, manifest, options);
  for await (const { firstPage, refs, depths } of index.windows(options)) map.load(firstPage, refs, depths);
  return map;
}
