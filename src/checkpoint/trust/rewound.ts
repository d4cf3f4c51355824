/**
 * What a rewind leaves to the next checkpoint. The chain stays a row: the next checkpoint is held against the newest
 * one, X, although the VM was put back to an earlier one, R, since. The tracker counts from the rewind, when memory was
 * R's, so every page in which R differs from X counts as written besides.
 *
 *     chain    base -- R -- ... -- X -- next            next = what differs between R and X, and what was written since
 *                      ^ the VM was put back to it
 */

import type { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { isCheckpointError, type ErrorCode } from '../../errors.js';
import { sameLayout, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Repository } from '../../repository/repository.js';
import { differingPages } from '../../repository/read/differing-pages.js';
import type { PageMap } from '../../repository/read/page-map.js';
import type { CallOptions } from '../../storage/backend.js';
import type { LedgerEntry } from './ledger.js';

/** What the VM was put back to. */
export interface Rewound {
  readonly map: PageMap;
  readonly layout: MemoryLayout;
}

/** It cannot be read; the next checkpoint does not need it, if all pages are compared. */
const LOST: readonly ErrorCode[] = ['CHECKPOINT_NOT_FOUND', 'CHECKPOINT_GONE', 'REPO_DAMAGED'];

/**
 * @returns undefined when the VM was not rewound, null when nobody can tell any more what it was put back to
 * @throws what the backend throws
 */
export async function rewoundTo(
  repository: Repository,
  ledger: LedgerEntry | undefined,
  options: CallOptions,
): Promise<Rewound | undefined | null> {
  if (ledger?.rewoundTo === undefined || ledger.state !== 'clean' || ledger.repositoryId !== repository.id)
    return undefined;
  try {
    const manifest = await repository.find(ledger.rewoundTo, ledger.chain, options);
    return { map: await repository.loadMap(manifest, options), layout: manifest.layout };
  } catch (error) {
    if (LOST.some((code) => isCheckpointError(error, code))) return null;
    throw error;
  }
}

/** Caller owns it. @param parent the map of the checkpoint that the next one is held against, of the same layout */
export function pagesRewound({ map }: Rewound, parent: PageMap): DirtyBitmap {
  return differingPages(map, parent);
}

export function isUsable(rewound: Rewound | undefined | null, layout: MemoryLayout): boolean {
  return rewound === undefined || (rewound !== null && sameLayout(rewound.layout, layout));
}
