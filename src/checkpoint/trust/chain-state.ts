/**
 * The part of a chain that is held in memory between checkpoints: where each page of the newest one lies, and
 * a reader for it.
 */

import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { ChainReader } from '../../repository/read/chain-reader.js';
import type { ChainWriter } from '../../repository/chain-writer.js';
import type { Manifest } from '../../format/manifest.js';
import { PageMap } from '../../repository/read/page-map.js';

/** Budget for frames of older checkpoints. A session is to spend its memory on previous versions instead. */
const READER_CACHE_BYTES = 32 << 20;

export interface ChainState {
  /** Empty before a base. */
  parentId: string;
  readonly layout: MemoryLayout;
  readonly map: PageMap;
  readonly reader: ChainReader;
  /**
   * True after a failed checkpoint whose bits were put back in this process: the record is still unbroken
   * here.
   */
  carried: boolean;
}

/** The map of the newest checkpoint, being read since the session was opened. */
export interface EarlyMap {
  readonly parentId: string;
  readonly map: Promise<PageMap>;
}

/**
 * Begins to read it while the workers start. Whoever needs it waits for it; until then its failure must not
 * count as unhandled.
 */
export function readEarly(chain: ChainWriter): EarlyMap | undefined {
  const { latest } = chain;
  if (latest === null) return undefined;
  const early = { parentId: latest.id, map: chain.loadMap(latest) };
  early.map.catch(() => undefined);
  return early;
}

/**
 * @param parent null for a base
 * @param early used when it is of `parent`
 * @throws REPO_DAMAGED, and what the backend throws
 */
export async function loadState(
  chain: ChainWriter,
  parent: Manifest | null,
  layout: MemoryLayout,
  early: EarlyMap | undefined,
): Promise<ChainState> {
  return {
    parentId: parent?.id ?? '',
    layout,
    map: parent === null ? new PageMap(layout.pageSpan) : await mapOf(chain, parent, layout, early),
    reader: chain.reader({ cacheBytes: READER_CACHE_BYTES }),
    carried: false,
  };
}

async function mapOf(
  chain: ChainWriter,
  parent: Manifest,
  layout: MemoryLayout,
  early: EarlyMap | undefined,
): Promise<PageMap> {
  const map = early?.parentId === parent.id ? early.map : chain.loadMap(parent);
  return (await map).remap(parent.layout, layout);
}
