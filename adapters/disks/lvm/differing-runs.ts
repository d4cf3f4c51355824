/** Blocks in which two devices differ, in ascending order, as runs. */

export const BLOCK_BYTES = 4096;

export interface BlockRun {
  readonly firstBlock: number;
  readonly blockCount: number;
}

export class DifferingRuns {
  readonly #runs: { firstBlock: number; blockCount: number }[] = [];
  #blockCount = 0;

  get blockCount(): number {
    return this.#blockCount;
  }

  /** @param block above all that were added before */
  add(block: number): void {
    this.#blockCount++;
    const last = this.#runs.at(-1);
    if (last !== undefined && last.firstBlock + last.blockCount === block) last.blockCount++;
    else this.#runs.push({ firstBlock: block, blockCount: 1 });
  }

  /** Every block. */
  *blocks(): Generator<number, void, void> {
    for (const { firstBlock, blockCount } of this.#runs)
      for (let i = 0; i < blockCount; i++) yield firstBlock + i;
  }

  /** The runs, cut into pieces of at most so many blocks. */
  *pieces(maxBlocks: number): Generator<BlockRun, void, void> {
    for (const { firstBlock, blockCount } of this.#runs) {
      for (let done = 0; done < blockCount; done += maxBlocks) {
        yield { firstBlock: firstBlock + done, blockCount: Math.min(maxBlocks, blockCount - done) };
      }
    }
  }
}
