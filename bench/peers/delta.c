/*
 * What dirty pages are made smaller with elsewhere, compiled with -O3 -march=native; own code from public descriptions.
 *
 * All take `count` old and new pages of 4096 bytes, one after the other, and return the bytes that come out: `lengths` gets each
 * page's length (0 = unchanged, 4096 = whole) where pages are encoded one by one.
 */
#define ZSTD_STATIC_LINKING_ONLY
#include <lz4.h>
#include <stdint.h>
#include <string.h>
#include <zstd.h>

#define PAGE 4096

/*
 * XBZRLE (QEMU, docs/devel/migration, "XBZRLE"): page = (zrun nzrun)*, zrun = length, nzrun = length and the new bytes,
 * lengths in ULEB128; no last zrun. Equal bytes are skipped eight at a time, changed ones taken eight at a time
 * as long as none of the eight is equal.
 */
static int put_leb(uint8_t *out, uint32_t value)
{
  if (value < 128) {
    out[0] = (uint8_t)value;
    return 1;
  }
  out[0] = (uint8_t)(value | 128);
  out[1] = (uint8_t)(value >> 7);
  return 2;
}

/* Returns the length, 0 when the pages are equal, -1 when it would not be shorter than a page. */
static int xbzrle_encode_page(const uint8_t *old, const uint8_t *new, uint8_t *out)
{
  const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
  int at = 0, d = 0;
  while (at < PAGE) {
    int from = at;
    while (at < PAGE && (at & 7) != 0 && old[at] == new[at]) at++;
    if ((at & 7) == 0) {
      while (at < PAGE) {
        uint64_t a, b;
        memcpy(&a, old + at, 8);
        memcpy(&b, new + at, 8);
        if (a != b) break;
        at += 8;
      }
      while (at < PAGE && old[at] == new[at]) at++;
    }
    if (at == PAGE) break;
    /* Two lengths of up to two bytes and one byte of data must fit. */
    if (d + 2 > PAGE) return -1;
    d += put_leb(out + d, (uint32_t)(at - from));
    from = at;
    while (at < PAGE && (at & 7) != 0 && old[at] != new[at]) at++;
    if ((at & 7) == 0) {
      while (at < PAGE) {
        uint64_t a, b;
        memcpy(&a, old + at, 8);
        memcpy(&b, new + at, 8);
        uint64_t x = a ^ b;
        /* A zero byte in the difference ends the run. */
        if (((x - ones) & ~x & tops) != 0) break;
        at += 8;
      }
      while (at < PAGE && old[at] != new[at]) at++;
    }
    int length = at - from;
    if (d + length + 2 > PAGE) return -1;
    d += put_leb(out + d, (uint32_t)length);
    memcpy(out + d, new + from, (size_t)length);
    d += length;
  }
  return d < PAGE ? d : -1;
}

static int get_leb(const uint8_t *in, uint32_t *value)
{
  if (in[0] < 128) {
    *value = in[0];
    return 1;
  }
  *value = (in[0] & 127u) | ((uint32_t)in[1] << 7);
  return 2;
}

static int xbzrle_decode_page(const uint8_t *in, int length, uint8_t *page)
{
  int i = 0;
  uint32_t at = 0, count;
  while (i < length) {
    if (length - i < 2) return -1;
    i += get_leb(in + i, &count);
    at += count;
    if (at > PAGE || length - i < 2) return -1;
    i += get_leb(in + i, &count);
    if (count == 0 || at + count > PAGE || i + (int)count > length) return -1;
    memcpy(page + at, in + i, count);
    at += count;
    i += (int)count;
  }
  return (int)at;
}

uint64_t xbzrle_encode(const uint8_t *old, const uint8_t *new, uint64_t count, uint8_t *out, uint16_t *lengths)
{
  uint8_t *d = out;
  for (uint64_t i = 0; i < count; i++) {
    const uint8_t *page = new + i * PAGE;
    int length = xbzrle_encode_page(old + i * PAGE, page, d);
    if (length < 0) {
      memcpy(d, page, PAGE);
      length = PAGE;
    }
    lengths[i] = (uint16_t)length;
    d += length;
  }
  return (uint64_t)(d - out);
}

/* Brings `pages` from old to new. Returns 0, or the number of the first bad page plus 1. */
uint64_t xbzrle_decode(uint8_t *pages, uint64_t count, const uint8_t *in, const uint16_t *lengths)
{
  for (uint64_t i = 0; i < count; i++) {
    if (lengths[i] == PAGE) memcpy(pages + i * PAGE, in, PAGE);
    else if (lengths[i] != 0 && xbzrle_decode_page(in, lengths[i], pages + i * PAGE) < 0) return i + 1;
    in += lengths[i];
  }
  return 0;
}

/*
 * Runs of words, as the page compression that Remus once had in Xen: a byte says how many words of 4 bytes follow (1 to
 * 127), changed (the words follow) or, with its top bit set, unchanged. A page that does not get shorter is sent whole.
 */
uint64_t word_runs_encode(const uint8_t *old, const uint8_t *new, uint64_t count, uint8_t *out, uint16_t *lengths)
{
  uint8_t *d = out;
  for (uint64_t i = 0; i < count; i++) {
    const uint32_t *a = (const uint32_t *)(old + i * PAGE), *b = (const uint32_t *)(new + i * PAGE);
    uint8_t *start = d;
    int at = 0, whole = 0, changed = 0;
    while (at < PAGE / 4) {
      int same = a[at] == b[at], n = 1;
      while (at + n < PAGE / 4 && n < 127 && (a[at + n] == b[at + n]) == same) n++;
      int size = same ? 1 : 1 + n * 4;
      if (d - start + size >= PAGE) {
        whole = 1;
        break;
      }
      *d++ = (uint8_t)(same ? n | 128 : n);
      if (!same) {
        memcpy(d, b + at, (size_t)n * 4);
        d += n * 4;
        changed = 1;
      }
      at += n;
    }
    if (whole) {
      memcpy(start, b, PAGE);
      d = start + PAGE;
    } else if (!changed) d = start;
    lengths[i] = (uint16_t)(d - start);
  }
  return (uint64_t)(d - out);
}

uint64_t lz4_encode(const uint8_t *new, uint64_t count, uint8_t *out, uint64_t room)
{
  return (uint64_t)LZ4_compress_default((const char *)new, (char *)out, (int)(count * PAGE), (int)room);
}

uint64_t zstd_encode(const uint8_t *new, uint64_t count, uint8_t *out, uint64_t room, int level)
{
  size_t length = ZSTD_compress(out, room, new, count * PAGE, level);
  return ZSTD_isError(length) ? 0 : length;
}

/*
 * What `zstd --patch-from` does: the old pages are a prefix that the new ones may refer to, within one window over both, with
 * long distance matching.
 */
uint64_t zstd_patch_encode(const uint8_t *old, const uint8_t *new, uint64_t count, uint8_t *out, uint64_t room, int level)
{
  ZSTD_CCtx *context = ZSTD_createCCtx();
  int window = 64 - __builtin_clzll(count * PAGE * 2);
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window < 10 ? 10 : window > 31 ? 31 : window);
  ZSTD_CCtx_setParameter(context, ZSTD_c_enableLongDistanceMatching, 1);
  ZSTD_CCtx_refPrefix(context, old, count * PAGE);
  size_t length = ZSTD_compress2(context, out, room, new, count * PAGE);
  ZSTD_freeCCtx(context);
  return ZSTD_isError(length) ? 0 : length;
}

/* The limits of this machine. */
uint64_t read_all(const uint64_t *words, uint64_t count)
{
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (uint64_t i = 0; i + 32 <= count; i += 32)
    for (int k = 0; k < 8; k++) {
      a |= words[i + (uint64_t)k];
      b |= words[i + 8 + (uint64_t)k];
      c |= words[i + 16 + (uint64_t)k];
      d |= words[i + 24 + (uint64_t)k];
    }
  return a | b | c | d;
}

uint64_t compare_all(const uint64_t *x, const uint64_t *y, uint64_t count)
{
  uint64_t a = 0, b = 0;
  for (uint64_t i = 0; i + 16 <= count; i += 16)
    for (int k = 0; k < 8; k++) {
      a |= x[i + (uint64_t)k] ^ y[i + (uint64_t)k];
      b |= x[i + 8 + (uint64_t)k] ^ y[i + 8 + (uint64_t)k];
    }
  return a | b;
}
