/** What runs in a page server (`page-server.ts`): the checkpoint as it is given there, and what an adapter makes of it. */

import type { JsonObject } from '../types.js';
import type { PageServerWord, ServedProcess, ServingEvent } from './page-server.js';
import type { CheckpointSource } from './restore.js';

/** A checkpoint whose pages are read one by one as well. All that is read was verified. */
export interface PagedSource extends CheckpointSource {
  /** False for a zero page. */
  isStored(page: number): boolean;
  /** Pages that are not zero. */
  readonly storedPages: number;
  /** Pages that were written last, which a guest is likely to need first. */
  readonly hotPages: Uint32Array;
  /** @param into 4096 bytes a page @throws REPO_DAMAGED, CHECKPOINT_GONE, and what the storage throws */
  readPages(pages: Uint32Array, into: Uint8Array): Promise<void>;
}

export interface PageServing {
  readonly source: PagedSource;
  readonly vm: ServedProcess;
  /** Of the adapter's own; see `ServedVm`. */
  readonly args: JsonObject;
  /** Descriptor of the connection to the VM; absent in a server that takes over from one that has ended. */
  readonly stream?: number;
  /** Most bytes a second beside what the VM asks for. */
  readonly bytesPerSecond: number;
  /** When the caller has said the word; false when the caller went away before. */
  readonly told: (word: PageServerWord) => Promise<boolean>;
  readonly report: (event: ServingEvent) => void;
}

/** What a module that is given as `PageServerOrder.modulePath` exports. Resolves once the VM has all of its memory. */
export interface PageServingModule {
  readonly servePages: (serving: PageServing) => Promise<void>;
}
