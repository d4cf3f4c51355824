/**
 * A target of the fuzzer: one reader of input that is not trusted, with inputs to begin from.
 *
 *     test/fuzz/targets/NAME.ts     exports `openTarget`
 *     test/fuzz/corpus/NAME/        inputs that are kept: each is run as it is, and mutated
 *
 * Every run must end, and end with a value or a CheckpointError whose code says what is wrong (`oracle.ts`).
 *
 * The driver (`run-inputs.ts`) is ours. Fuzzers on npm are bound to libFuzzer, which is native code, or are not kept any more;
 * fast-check makes values of a model and does not change a corpus. What it takes here is a generator with a seed, changes that
 * know bytes, JSON and text, and as a sign of new behaviour the place and the text of how a run ended, which costs nothing
 * and suits readers: each of their refusals is another place.
 */

/** Numbers in [0, bound). */
export type Random = (bound: number) => number;

/** @param others inputs whose parts may be put into this one. @returns another array */
export type Mutate = (input: Uint8Array, random: Random, others: readonly Uint8Array[]) => Uint8Array;

export interface FuzzTarget {
  /** Inputs to begin from, beside the files of the corpus. */
  readonly seeds: readonly Uint8Array[];
  readonly mutate: Mutate;
  /**
   * Reads the input as the product would.
   * @returns a word that tells kinds of success apart: an input of a new kind is mutated further
   * @throws what the product throws; an Error of this test when what was accepted breaks an invariant
   */
  readonly run: (input: Uint8Array) => Promise<string>;
  /** Bytes of one buffer that an input of this length justifies. Default: `justifiedBytes`. */
  readonly allowedBytes?: (inputBytes: number) => number;
}

/** @param workDir a folder of the run's own; what a run leaves there is not cleared until the end */
export type OpenTarget = (workDir: string) => Promise<FuzzTarget>;

const FIXED_BYTES = 24 << 20;
const BYTES_FOR_EACH = 1024;

/** Buffers of a fixed size are all below 24 MiB; a few KiB of input may stand for a few MiB. */
export function justifiedBytes(inputBytes: number): number {
  return FIXED_BYTES + inputBytes * BYTES_FOR_EACH;
}

/** For invariants. @throws Error, which the oracle takes for a finding */
export function must(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`invariant broken: ${what}`);
}
