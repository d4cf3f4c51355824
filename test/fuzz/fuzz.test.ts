/** Every kept input, and some made of them, of each target. `npm run fuzz` goes on from there. */

import { describe, expect, it } from '@jest/globals';

import { runTarget } from './campaign.js';
import { targetNames } from './corpus.js';

/** Inputs that are made for each target, a few seconds each. Counted, so that a run is the same everywhere. */
const DEFAULT_COUNT = 400;
const COUNTS: Readonly<Record<string, number>> = { repository: 40, 'qmp-replies': 100, trace: 200 };
/** The same in every run: a change of the code is what may find something new here. */
const SEED = 1;

describe('hostile input ends by code and in bounded memory', () => {
  it.each(targetNames())(
    '%s',
    async (target) => {
      const { problems } = await runTarget({ target, seed: SEED, count: COUNTS[target] ?? DEFAULT_COUNT });
      expect(problems).toEqual([]);
    },
    300_000,
  );
});
