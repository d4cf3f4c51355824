/*
 * What a dirty bitmap is scanned with elsewhere, compiled with -O2. Both turn set bits into runs (first page, page count).
 *
 * scan_bits: every frame number is asked for its bit, as a save loop of Xen's libxenguest does.
 * scan_words: find-next-set-bit and find-next-zero-bit in turns, each skipping whole words, as in the Linux kernel's bitmap
 * library. Own code from the public description of both.
 *
 * `repeat` runs the scan that often, so that a short one is not lost in the cost of the call. Returns the number of runs.
 */
#include <stdint.h>

static int test_bit(uint64_t bit, const uint64_t *bitmap)
{
  return (bitmap[bit >> 6] >> (bit & 63)) & 1;
}

__attribute__((noinline)) static uint64_t bits_once(const uint64_t *bitmap, uint64_t pages, uint32_t *runs)
{
  uint64_t count = 0;
  uint64_t first = 0;
  int open = 0;
  for (uint64_t page = 0; page < pages; page++) {
    if (test_bit(page, bitmap)) {
      if (!open) first = page;
      open = 1;
    } else if (open) {
      runs[count * 2] = (uint32_t)first;
      runs[count * 2 + 1] = (uint32_t)(page - first);
      count++;
      open = 0;
    }
  }
  if (open) {
    runs[count * 2] = (uint32_t)first;
    runs[count * 2 + 1] = (uint32_t)(pages - first);
    count++;
  }
  return count;
}

/* First bit at or after `from` that is set in bitmap XOR invert; `pages` when there is none. */
__attribute__((noinline)) static uint64_t find_next(const uint64_t *bitmap, uint64_t pages, uint64_t from, uint64_t invert)
{
  if (from >= pages) return pages;
  uint64_t word = from >> 6;
  uint64_t last = (pages - 1) >> 6;
  uint64_t bits = (bitmap[word] ^ invert) & (~(uint64_t)0 << (from & 63));
  while (bits == 0) {
    if (++word > last) return pages;
    bits = bitmap[word] ^ invert;
  }
  uint64_t found = (word << 6) + (uint64_t)__builtin_ctzll(bits);
  return found < pages ? found : pages;
}

__attribute__((noinline)) static uint64_t words_once(const uint64_t *bitmap, uint64_t pages, uint32_t *runs)
{
  uint64_t count = 0;
  uint64_t first = find_next(bitmap, pages, 0, 0);
  while (first < pages) {
    uint64_t end = find_next(bitmap, pages, first + 1, ~(uint64_t)0);
    runs[count * 2] = (uint32_t)first;
    runs[count * 2 + 1] = (uint32_t)(end - first);
    count++;
    first = find_next(bitmap, pages, end + 1, 0);
  }
  return count;
}

uint64_t scan_bits(const uint64_t *bitmap, uint64_t pages, uint32_t *runs, uint64_t repeat)
{
  uint64_t count = 0;
  while (repeat-- > 0) {
    count = bits_once(bitmap, pages, runs);
    __asm__ volatile("" ::: "memory");
  }
  return count;
}

uint64_t scan_words(const uint64_t *bitmap, uint64_t pages, uint32_t *runs, uint64_t repeat)
{
  uint64_t count = 0;
  while (repeat-- > 0) {
    count = words_once(bitmap, pages, runs);
    __asm__ volatile("" ::: "memory");
  }
  return count;
}
