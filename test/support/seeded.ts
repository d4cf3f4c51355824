/** Numbers that are the same for the same seed, so that whatever a test makes of them can be made again. */

/** A global of a test file is looked up through jest each time that it is named. */
const { imul } = Math;

/** Numbers in [0, bound), the same for the same seed (mulberry32). */
export function seeded(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = imul(state ^ (state >>> 15), state | 1);
    t = (t + imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % bound;
  };
}
