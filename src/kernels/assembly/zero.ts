import { PAGE_SIZE } from './constants';

/** True when the page holds only zeros. Leaves at the first 128 bytes that do not. */
export function isZeroPage(page: usize): bool {
  for (let o: usize = 0; o < <usize>PAGE_SIZE; o += 128) {
    const p = page + o;
    const low = v128.or(v128.or(v128.load(p), v128.load(p, 16)), v128.or(v128.load(p, 32), v128.load(p, 48)));
    const high = v128.or(
      v128.or(v128.load(p, 64), v128.load(p, 80)),
      v128.or(v128.load(p, 96), v128.load(p, 112)),
    );
    if (v128.any_true(v128.or(low, high))) return false;
  }
  return true;
}

/** Sets bit i of `outBitmap` when page i is all zero; writes ceil(pageCount / 64) whole words. */
export function isZeroPages(pages: usize, pageCount: u32, outBitmap: usize): void {
  let word: u64 = 0;
  for (let i: u32 = 0; i < pageCount; i++) {
    if (isZeroPage(pages + <usize>i * PAGE_SIZE)) word |= (<u64>1) << (i & 63);
    if ((i & 63) == 63 || i + 1 == pageCount) {
      store<u64>(outBitmap + ((<usize>(i >> 6)) << 3), word);
      word = 0;
    }
  }
}
