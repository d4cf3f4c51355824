/**
 * Sharing page runs out among workers by stripes of the page index, so that a page always has the same owner.
 */

import type { PageRuns } from '../types.js';

/**
 * Splits `runs` among `ownerCount` owners; the owner of a page is floor(page / stripePages) % ownerCount.
 * Runs are cut at stripe borders where the owner changes.
 * @returns one list of runs for each owner, each again ascending and without neighbours. Caller owns them.
 * @throws RangeError unless `stripePages` and `ownerCount` are positive integers
 */
export function splitByOwner(runs: PageRuns, stripePages: number, ownerCount: number): Uint32Array[] {
  if (!(Number.isInteger(stripePages) && stripePages > 0))
    throw new RangeError(`stripe of ${stripePages} pages`);
  if (!(Number.isInteger(ownerCount) && ownerCount > 0)) throw new RangeError(`${ownerCount} owners`);
  if (ownerCount === 1) return [runs.slice()];

  // Twice over the runs: exact sizes first, so that a large guest's runs are not copied while lists grow.
  const lengths = new Uint32Array(ownerCount);
  eachPiece(runs, stripePages, ownerCount, (owner) => {
    lengths[owner]! += 2;
  });
  const split = Array.from(lengths, (length) => new Uint32Array(length));
  const used = new Uint32Array(ownerCount);
  eachPiece(runs, stripePages, ownerCount, (owner, first, count) => {
    const at = used[owner]!;
    split[owner]![at] = first;
    split[owner]![at + 1] = count;
    used[owner] = at + 2;
  });
  return split;
}

function eachPiece(
  runs: PageRuns,
  stripePages: number,
  ownerCount: number,
  visit: (owner: number, first: number, count: number) => void,
): void {
  for (let i = 0; i < runs.length; i += 2) {
    const end = runs[i]! + runs[i + 1]!;
    let first = runs[i]!;
    while (first < end) {
      const stripe = Math.floor(first / stripePages);
      const stop = Math.min(end, (stripe + 1) * stripePages);
      visit(stripe % ownerCount, first, stop - first);
      first = stop;
    }
  }
}
