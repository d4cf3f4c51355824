/**
 * Decides which changed pages are stored as patches, together with which others, and against what.
 *
 * A page that changed in many places often holds content that was elsewhere before: a file read, copied or
 * packed moves through memory, and a database writes its pages to a journal. Such pages go into groups that
 * share content, each with the previous versions of pages that hold some of it: its own, and others found by
 * an index of content.
 */

import { MAX_PATCH_RECORDS, MAX_PATCH_SOURCES } from '../format/frame-limits.js';
import { ContentIndex } from './content-index.js';

export interface PatchCandidate {
  /** Position of the page in the batch. */
  readonly position: number;
  /** Where the page's new content lies. */
  readonly content: number;
  /**
   * Runs against its previous version are smaller than the page: that version is of use, and there is a
   * choice.
   */
  readonly hasRuns: boolean;
}

export interface PreviousPage {
  readonly position: number;
  readonly content: number;
}

export interface PatchGroup {
  /** Positions of the pages, ascending. */
  readonly members: readonly number[];
  /** Positions of the pages whose previous versions they are held against. */
  readonly sources: readonly number[];
}

/** Anchors in common that make a page worth having: one may be chance, or a constant. */
const MIN_VOTES = 2;
/** Pages of either kind that one page brings along. */
const MOST_RELATED = 4;

/**
 * @param anchorsOf anchors of the content that lies at an offset; valid until the next call
 * @param previous those that may serve as sources
 */
export function planPatches(
  anchorsOf: (content: number) => Int32Array,
  candidates: readonly PatchCandidate[],
  previous: readonly PreviousPage[],
): readonly PatchGroup[] {
  const old = new ContentIndex(previous.length);
  const usable = new Set<number>();
  for (const { position, content } of previous) {
    usable.add(position);
    for (const key of anchorsOf(content)) old.find(key, position);
  }
  const fresh = new ContentIndex(candidates.length);
  const sourcesOf: number[][] = [];
  /** Later candidates that have content in common with it, for each candidate. */
  const followers: number[][] = candidates.map(() => []);
  candidates.forEach(({ position, content, hasRuns }, i) => {
    const oldVotes = new Map<number, number>();
    const freshVotes = new Map<number, number>();
    for (const key of anchorsOf(content)) {
      const source = old.find(key);
      if (source >= 0) {
        vote(oldVotes, source);
        continue;
      }
      const twin = fresh.find(key, i);
      if (twin !== i) vote(freshVotes, twin);
    }
    const sources = elected(oldVotes);
    if (hasRuns && usable.has(position) && !sources.includes(position)) sources.unshift(position);
    sourcesOf.push(sources);
    for (const twin of elected(freshVotes)) followers[twin]!.push(i);
  });
  const order = inOrderOfContent(followers);
  // A page without a source gains only when it shares content with others or has no runs.
  const isAlone = (i: number): boolean =>
    sourcesOf[i]!.length === 0 && candidates[i]!.hasRuns && followers[i]!.length === 0;
  return cut(
    candidates,
    order.filter((i) => !isAlone(i)),
    sourcesOf,
  );
}

function vote(votes: Map<number, number>, of: number): void {
  votes.set(of, (votes.get(of) ?? 0) + 1);
}

function elected(votes: ReadonlyMap<number, number>): number[] {
  return [...votes]
    .filter(([, count]) => count >= MIN_VOTES)
    .sort(([, a], [, b]) => b - a)
    .slice(0, MOST_RELATED)
    .map(([of]) => of);
}

/**
 * Candidates so that those with common content come next to each other: each is followed by its followers,
 * and theirs.
 */
function inOrderOfContent(followers: readonly (readonly number[])[]): readonly number[] {
  const order: number[] = [];
  const placed = new Uint8Array(followers.length);
  for (let first = 0; first < followers.length; first++) {
    const next = [first];
    while (next.length > 0) {
      const i = next.pop()!;
      if (placed[i] === 1) continue;
      placed[i] = 1;
      order.push(i);
      for (const follower of [...followers[i]!].reverse()) next.push(follower);
    }
  }
  return order;
}

function cut(
  candidates: readonly PatchCandidate[],
  order: readonly number[],
  sourcesOf: readonly (readonly number[])[],
): readonly PatchGroup[] {
  const groups: PatchGroup[] = [];
  for (let from = 0; from < order.length; from += MAX_PATCH_RECORDS) {
    const some = order.slice(from, from + MAX_PATCH_RECORDS);
    // Each page's best source comes before anybody's second.
    const sources = new Set<number>();
    for (let rank = 0; rank <= MOST_RELATED; rank++) {
      for (const i of some) {
        const source = sourcesOf[i]![rank];
        if (source !== undefined && sources.size < MAX_PATCH_SOURCES) sources.add(source);
      }
    }
    groups.push({
      members: some.map((i) => candidates[i]!.position).sort((a, b) => a - b),
      sources: [...sources],
    });
  }
  return groups;
}
