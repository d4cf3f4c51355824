/**
 * Finds pages that have pieces of content in common, at whatever offset.
 *
 * Anchors are places that the content itself chooses: words whose hash, with the next word, has its top bits zero. So equal
 * content has the same anchors wherever it lies, as long as it lies at a multiple of 4. Each anchor stands for the 32 bytes from it on.
 */

/** One word in 32 is an anchor: some 30 a page, fewer where content repeats. */
const ANCHOR_SHIFT = 27;
const ANCHORS_PER_PAGE = 32;
const WORDS_PER_PAGE = 1024;
/** Words of an anchor's content. */
const SPAN_WORDS = 8;
const MIX_A = 0x9e3779b1;
const MIX_B = 0x85ebca6b;

/** Calls `visit` with a hash of the content of each anchor of the page at `first` (in words). */
export function visitAnchors(words: Uint32Array, first: number, visit: (key: number) => void): void {
  const end = first + WORDS_PER_PAGE - SPAN_WORDS;
  for (let at = first; at <= end; at++) {
    const word = words[at]!;
    const next = words[at + 1]!;
    // What repeats a word, above all zeroes, says nothing.
    if (word === next) continue;
    if (Math.imul(word ^ Math.imul(next, MIX_B), MIX_A) >>> ANCHOR_SHIFT !== 0) continue;
    let key = 0;
    for (let i = 0; i < SPAN_WORDS; i++) key = Math.imul((key << 13) ^ (key >>> 19) ^ words[at + i]!, MIX_A);
    visit((key ^ (key >>> 15)) | 1);
  }
}

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

  /** @returns the owner of `key`, after entering `owner` when it had none; -1 when it had none and none is given */
  find(key: number, owner = -1): number {
    let at = Math.imul(key, MIX_B) >>> 0;
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
