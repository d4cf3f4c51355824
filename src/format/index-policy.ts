/**
 * Decides which index segments a checkpoint needs (docs/format.md, segments and levels).
 *
 * Every checkpoint writes one segment. It holds the checkpoint's own changes, or these together with segments
 * of the parent that it replaces: seven of level 0 and the new one become one of level 1, and so on upwards;
 * when what comes out is more than half of the bottom segment, all becomes a new bottom.
 *
 *     level    0 0 0 0 0 0 0      1 1 1 ...      bottom
 *              newest first, at most 7 a level   exactly one
 */

import { BOTTOM_LEVEL, type SegmentEntry } from './manifest.js';

/**
 * Segments of one level that are merged. More would mean fewer bytes written, and more segments to read for a
 * map.
 */
export const MERGE_FACTOR = 8;
/** Levels below the bottom. 8^8 checkpoints fill them; what comes after is merged into a new bottom. */
export const MAX_LEVELS = 8;
export const MAX_SEGMENTS = (MERGE_FACTOR - 1) * MAX_LEVELS + 1;

export interface IndexPlan {
  readonly level: number;
  /**
   * Levels whose segments are taken over: the new one covers the last 8^rise checkpoints. 0 when it is the
   * first bottom, or pages have moved.
   */
  readonly rise: number;
  /**
   * Segments of the parent whose entries the new one takes over; empty for a bottom, which takes everything.
   */
  readonly merged: readonly SegmentEntry[];
  /** Segments of the parent that stay, newest first. */
  readonly kept: readonly SegmentEntry[];
}

/**
 * @param segments of the parent, newest first; empty for a base
 * @param changedCount entries of this checkpoint
 * @param sameNumbers false when pages have moved: old segments number them differently
 */
export function planIndex(
  segments: readonly SegmentEntry[],
  changedCount: number,
  sameNumbers: boolean,
): IndexPlan {
  const newBottom: IndexPlan = { level: BOTTOM_LEVEL, rise: 0, merged: [], kept: [] };
  const bottom = segments.find((segment) => segment.level === BOTTOM_LEVEL);
  if (bottom === undefined || !sameNumbers) return newBottom;
  let level = 0;
  let merged: SegmentEntry[] = [];
  while (level < MAX_LEVELS) {
    const ofLevel = segments.filter((segment) => segment.level === level);
    if (ofLevel.length < MERGE_FACTOR - 1) break;
    merged = [...merged, ...ofLevel];
    level++;
  }
  const entryCount = merged.reduce((sum, segment) => sum + segment.entryCount, changedCount);
  if (level === MAX_LEVELS || entryCount * 2 > bottom.entryCount) return { ...newBottom, rise: level };
  return { level, rise: level, merged, kept: segments.filter((segment) => !merged.includes(segment)) };
}
