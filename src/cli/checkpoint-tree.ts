/**
 * Checkpoints in the order in which they came from each other: a chain one below the other, and the chains of
 * forked VMs below the checkpoint that they were forked from, further in.
 *
 *     web1  base
 *     web1  incremental
 *       try-0  base           forked from the one above
 *       try-1  base
 *     web1  incremental
 */

import type { Manifest } from '../format/manifest.js';

export interface TreeRow {
  readonly manifest: Manifest;
  readonly depth: number;
}

/** @param manifests in the order of their chains. @returns the same ones, each once */
export function checkpointTree(manifests: readonly Manifest[]): readonly TreeRow[] {
  const ids = new Set(manifests.map(({ id }) => id));
  const chains = new Map<string, Manifest[]>();
  for (const manifest of manifests)
    chains.set(manifest.chain, [...(chains.get(manifest.chain) ?? []), manifest]);
  const forks = new Map<string, (readonly Manifest[])[]>();
  const roots: (readonly Manifest[])[] = [];
  for (const chain of chains.values()) {
    const origin = chain.find(({ forkedFrom }) => forkedFrom !== undefined)?.forkedFrom?.checkpointId ?? '';
    const isOwn = chain.some(({ id }) => id === origin);
    if (!ids.has(origin) || isOwn) roots.push(chain);
    else forks.set(origin, [...(forks.get(origin) ?? []), chain]);
  }
  const rows: TreeRow[] = [];
  const shown = new Set<Manifest>();
  const add = (chain: readonly Manifest[], depth: number): void => {
    for (const manifest of chain) {
      // What a repository says may go round in a circle.
      if (shown.has(manifest)) return;
      shown.add(manifest);
      rows.push({ manifest, depth });
      for (const fork of forks.get(manifest.id) ?? []) add(fork, depth + 1);
    }
  };
  for (const chain of roots) add(chain, 0);
  for (const chain of chains.values()) add(chain, 0);
  return rows;
}
