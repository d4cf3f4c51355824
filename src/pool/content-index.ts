/** Finds pages that have pieces of content in common, by their anchors (`Kernels.findAnchors`). */

/**
 * Anchors kept of a page on average; a page whose content repeats has fewer. With twice as many, two of five
 * recorded workloads stored 0.5 % less, and one stored more.
 */
const ANCHORS_PER_PAGE = 32;
const MIX = 0x85ebca6b;

/** Anchors and the number of the first page that had each; open addressing, emptied by making a new one. */
export class ContentIndex {
  readonly #mask: number;
  readonly #keys: Int32Array;
  readonly #owners: Int32Array;
  #room: number;

  constructor(pageCount: number) {
    const size = 2 ** Math.ceil(Math.log2(Math.max(pageCount, 1) * ANCHORS_PER_PAGE * 2));
    this.#mask = size - 1;
    this.#keys = new Int32Array(size);
    this.#owners = new Int32Array(size);
    this.#room = Math.floor(size * 0.75);
  }

  /**
   * @returns the owner of `key`, after entering `owner` when it had none; -1 when it had none and none is
   *   given
   */
  find(key: number, owner = -1): number {
    let at = Math.imul(key, MIX) >>> 0;
    for (at &= this.#mask; this.#keys[at] !== 0; at = (at + 1) & this.#mask) {
      if (this.#keys[at] === key) return this.#owners[at]!;
    }
    if (owner < 0 || this.#room === 0) return owner;
    this.#room--;
    this.#keys[at] = key;
    this.#owners[at] = owner;
    return owner;
  }
}
