/**
 * How much of the previous versions a budget would hold: dirty pages, epoch by epoch, through a cache that
 * drops what was used least recently, for several sizes at once.
 */

import { PAGE_SIZE_BYTES } from '../types.js';

export interface BudgetFigures {
  readonly budgetBytes: number;
  /** Share of the pages dirty before whose previous version the cache still held. */
  readonly hitShare: number;
}

export class CacheSimulation {
  readonly #caches: readonly { readonly pages: number; readonly held: Set<number>; hits: number }[];
  readonly #seen = new Set<number>();
  #again = 0;

  constructor(budgetsBytes: readonly number[]) {
    this.#caches = budgetsBytes.map((bytes) => ({
      pages: Math.floor(bytes / PAGE_SIZE_BYTES),
      held: new Set<number>(),
      hits: 0,
    }));
  }

  add(pages: Uint32Array): void {
    for (const page of pages) {
      if (this.#seen.has(page)) this.#again++;
      this.#seen.add(page);
      for (const cache of this.#caches) {
        // A Set iterates in the order of insertion: deleted and added again, a page is the youngest.
        if (cache.held.delete(page)) cache.hits++;
        cache.held.add(page);
        if (cache.held.size > cache.pages) cache.held.delete(cache.held.values().next().value!);
      }
    }
  }

  result(): readonly BudgetFigures[] {
    return this.#caches.map(({ pages, hits }) => ({
      budgetBytes: pages * PAGE_SIZE_BYTES,
      hitShare: this.#again === 0 ? 1 : hits / this.#again,
    }));
  }
}
