/** Reading the engine's figures back from a manifest, whose `stats` are data without a schema. */

import type { Manifest } from '../format/manifest.js';

/** 0 when the figure is not there. */
export function statNumber(manifest: Manifest, key: string): number {
  const value = manifest.stats[key];
  return typeof value === 'number' ? value : 0;
}
