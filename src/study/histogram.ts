/** Counts in bins of doubling width: 0, 1, 2 to 3, 4 to 7, and so on. */

export interface Bin {
  /** Least and greatest value of the bin; the last bin's end is the greatest value seen. */
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

export class DoublingHistogram {
  readonly #counts: number[] = [];
  #greatest = 0;
  #total = 0;
  #sum = 0;

  /** @param value a whole number from 0 on */
  add(value: number, times = 1): void {
    const bin = value === 0 ? 0 : 1 + Math.floor(Math.log2(value));
    while (this.#counts.length <= bin) this.#counts.push(0);
    this.#counts[bin]! += times;
    this.#greatest = Math.max(this.#greatest, value);
    this.#total += times;
    this.#sum += value * times;
  }

  get total(): number {
    return this.#total;
  }

  /** 0 when nothing was added. */
  get mean(): number {
    return this.#total === 0 ? 0 : this.#sum / this.#total;
  }

  bins(): readonly Bin[] {
    return this.#counts.map((count, bin) => {
      const from = bin === 0 ? 0 : 2 ** (bin - 1);
      return { from, to: bin === 0 ? 0 : Math.min(2 ** bin - 1, Math.max(from, this.#greatest)), count };
    });
  }
}
