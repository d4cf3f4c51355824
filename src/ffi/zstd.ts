/**
 * zstd through the system's libzstd.so.1, which dpkg and rpm themselves depend on.
 *
 * One compression and one decompression context per thread, kept for the life of the thread: creating one
 * costs more than compressing a frame. Asynchronous calls use contexts of their own. Source: zstd.h,
 * simple API and explicit contexts.
 */

import koffi from 'koffi';

import { CheckpointError, describeError } from '../errors.js';

const LIBRARY = 'libzstd.so.1';
/** ZSTD_maxCLevel() of every libzstd since 1.3. */
export const MAX_LEVEL = 22;

type Handle = unknown;
type NativeSize = number | bigint;

/**
 * A block of zstd has at least 4 bytes and comes to at most 128 KiB (RFC 8878): no input makes more of itself than that, and
 * what claims to is given no memory.
 */
const MAX_EXPANSION = (128 * 1024) / 4;

/** ZSTD_EndDirective. */
const FLUSH = 1;
const END = 2;
/** ZSTD_cParameter, ZSTD_ResetDirective. */
const C_COMPRESSION_LEVEL = 100;
const C_WINDOW_LOG = 101;
const RESET_SESSION = 1;
const RESET_ALL = 3;
const MIN_WINDOW_LOG = 10;
const NO_PREFIX = new Uint8Array(0);

interface Library {
  readonly compressStream: (
    context: Handle,
    out: BigUint64Array,
    input: BigUint64Array,
    end: number,
  ) => NativeSize;
  readonly setParameter: (context: Handle, parameter: number, value: number) => NativeSize;
  readonly setSourceSize: (context: Handle, size: number) => NativeSize;
  readonly reset: (context: Handle, directive: number) => NativeSize;
  readonly compress: (
    context: Handle,
    dst: Uint8Array,
    dstSize: number,
    src: Uint8Array,
    srcSize: number,
    level: number,
  ) => NativeSize;
  readonly decompress: {
    (context: Handle, dst: Uint8Array, dstSize: number, src: Uint8Array, srcSize: number): NativeSize;
    async(
      context: Handle,
      dst: Uint8Array,
      dstSize: number,
      src: Uint8Array,
      srcSize: number,
      done: (error: unknown, result: NativeSize) => void,
    ): void;
  };
  readonly compress2: (
    context: Handle,
    dst: Uint8Array,
    dstSize: number,
    src: Uint8Array,
    srcSize: number,
  ) => NativeSize;
  readonly refPrefix: (context: Handle, prefix: bigint, size: number) => NativeSize;
  readonly refPrefixD: (context: Handle, prefix: bigint, size: number) => NativeSize;
  readonly createDecompression: () => Handle;
  /** Contexts of asynchronous calls that are over. */
  readonly freeDecompression: Handle[];
  readonly bound: (srcSize: number) => NativeSize;
  readonly isError: (result: NativeSize) => number;
  readonly errorName: (result: NativeSize) => string;
  readonly compressionContext: Handle;
  readonly decompressionContext: Handle;
  /** Reused between calls; what is handed out is a copy. */
  output: Uint8Array;
}

let loaded: Library | undefined;

/**
 * Buffers up to this length are kept: more than any frame takes. The index of a large guest is longer, and is
 * made once in a while.
 */
const KEPT_OUTPUT_BYTES = 2 << 20;

/** Gives room for so many bytes, good until the next call. */
function outputOf(zstd: Library, sizeBytes: number): Uint8Array {
  if (sizeBytes > KEPT_OUTPUT_BYTES) return new Uint8Array(sizeBytes);
  if (zstd.output.length < sizeBytes) zstd.output = new Uint8Array(sizeBytes);
  return zstd.output;
}

/**
 * Compresses in one go. Caller owns the result.
 * @param level 1 to 22
 * @throws ZSTD_MISSING, ZSTD_FAILED; RangeError for another level
 */
export function compress(src: Uint8Array, level: number): Uint8Array {
  if (!Number.isInteger(level) || level < 1 || level > MAX_LEVEL) {
    throw new RangeError(`zstd level ${level}: 1 to ${MAX_LEVEL}`);
  }
  const zstd = library();
  const bound = Number(zstd.bound(src.length));
  const into = outputOf(zstd, bound);
  // SAFETY: both buffers are alive during the synchronous call and their lengths are passed along.
  const result = zstd.compress(zstd.compressionContext, into, into.length, src, src.length, level);
  return into.slice(0, checked(zstd, result, `compressing ${src.length} bytes`));
}

/**
 * Compresses as `compress` does, with a new zstd block at each of `cuts`: what lies on either side has
 * statistics of its own, and gets its own code. The result is still one zstd frame; matches reach across.
 * @param cuts ascending offsets into `src`
 */
export function compressInBlocks(src: Uint8Array, cuts: readonly number[], level: number): Uint8Array {
  if (!Number.isInteger(level) || level < 1 || level > MAX_LEVEL) {
    throw new RangeError(`zstd level ${level}: 1 to ${MAX_LEVEL}`);
  }
  const zstd = library();
  const step = `compressing ${src.length} bytes`;
  // A block that does not get smaller is stored, with a header of 3 bytes.
  const bound = Number(zstd.bound(src.length)) + cuts.length * 8;
  const into = outputOf(zstd, bound);
  const context = zstd.compressionContext;
  checked(zstd, zstd.reset(context, RESET_SESSION), step);
  checked(zstd, zstd.setParameter(context, C_COMPRESSION_LEVEL, level), step);
  checked(zstd, zstd.setSourceSize(context, src.length), step);
  // ZSTD_inBuffer and ZSTD_outBuffer: pointer, size, position.
  const input = new BigUint64Array([koffi.address(src), 0n, 0n]);
  const output = new BigUint64Array([koffi.address(into), BigInt(into.length), 0n]);
  for (const end of [...cuts, src.length]) {
    input[1] = BigInt(end);
    // SAFETY: `src` and the output are alive during the synchronous call; zstd keeps to the sizes in the two
    // structs.
    const left = checked(
      zstd,
      zstd.compressStream(context, output, input, end === src.length ? END : FLUSH),
      step,
    );
    if (left !== 0 || input[2] !== input[1]) throw failed(step, 'the output did not fit its bound');
  }
  return into.slice(0, Number(output[2]));
}

/**
 * Compresses as `compress` does, with matches that may refer to `prefix` as if it came before `src`. The
 * window takes in both. The same prefix is needed to decompress. The two must not overlap: zstd leaves out
 * what does.
 */
export function compressWithPrefix(src: Uint8Array, prefix: Uint8Array, level: number): Uint8Array {
  const zstd = library();
  const step = `compressing ${src.length} bytes against ${prefix.length}`;
  const bound = Number(zstd.bound(src.length));
  const into = outputOf(zstd, bound);
  const context = zstd.compressionContext;
  const windowLog = Math.max(MIN_WINDOW_LOG, Math.ceil(Math.log2(src.length + prefix.length + 1)));
  checked(zstd, zstd.reset(context, RESET_ALL), step);
  try {
    checked(zstd, zstd.setParameter(context, C_COMPRESSION_LEVEL, level), step);
    checked(zstd, zstd.setParameter(context, C_WINDOW_LOG, windowLog), step);
    // SAFETY: zstd keeps a pointer to `prefix` until the end of this compression; it is alive until then and
    // not moved: the memory of an ArrayBuffer stays in its place.
    if (prefix.length > 0) checked(zstd, zstd.refPrefix(context, koffi.address(prefix), prefix.length), step);
    const result = zstd.compress2(context, into, into.length, src, src.length);
    return into.slice(0, checked(zstd, result, step));
  } finally {
    // The other calls expect parameters of their own and no prefix.
    zstd.reset(context, RESET_ALL);
  }
}

/** The inverse of `compressWithPrefix`; otherwise as `decompress`. @throws ZSTD_FAILED, ZSTD_MISSING */
export function decompressWithPrefix(src: Uint8Array, prefix: Uint8Array, rawLength: number): Uint8Array {
  if (prefix.length === 0) return decompress(src, rawLength);
  const zstd = library();
  const step = `decompressing ${src.length} bytes against ${prefix.length}`;
  const out = roomFor(src, rawLength);
  // SAFETY: as in `compressWithPrefix`; the prefix is for one decompression, and dropped by it also when it
  // fails.
  checked(zstd, zstd.refPrefixD(zstd.decompressionContext, koffi.address(prefix), prefix.length), step);
  const result = zstd.decompress(zstd.decompressionContext, out, rawLength, src, src.length);
  expectLength(checked(zstd, result, step), rawLength);
  return out;
}

/**
 * Decompresses what must come to exactly `rawLength` bytes. Caller owns the result. The input is not trusted:
 * the caller bounds `rawLength`, nothing is written past it.
 * @throws ZSTD_FAILED when the input is damaged or comes to another length, ZSTD_MISSING
 */
export function decompress(src: Uint8Array, rawLength: number): Uint8Array {
  const zstd = library();
  const out = roomFor(src, rawLength);
  // SAFETY: as in `compress`; zstd never writes past the destination length.
  const result = zstd.decompress(zstd.decompressionContext, out, rawLength, src, src.length);
  expectLength(checked(zstd, result, `decompressing ${src.length} bytes`), rawLength);
  return out;
}

/** Decompresses as `decompress` does, on another thread. `src` must not change until the promise settles. */
export function decompressAsync(src: Uint8Array, rawLength: number): Promise<Uint8Array> {
  return decompressWithPrefixAsync(src, NO_PREFIX, rawLength);
}

/**
 * Decompresses as `decompressWithPrefix` does, on another thread. Neither `src` nor `prefix` may change until the promise
 * settles.
 */
export async function decompressWithPrefixAsync(
  src: Uint8Array,
  prefix: Uint8Array,
  rawLength: number,
): Promise<Uint8Array> {
  const zstd = library();
  const out = roomFor(src, rawLength);
  const step = `decompressing ${src.length} bytes against ${prefix.length}`;
  // A context is used by one call at a time; as many are made as there have been calls at the same time.
  const context = zstd.freeDecompression.pop() ?? zstd.createDecompression();
  try {
    if (prefix.length > 0)
      checked(zstd, zstd.refPrefixD(context, koffi.address(prefix), prefix.length), step);
    // SAFETY: `out`, `src` and `prefix` are held by this function until the call is done, and not moved: the memory of an
    // ArrayBuffer stays in its place. The prefix is dropped by the call also when it fails.
    const result = await new Promise<NativeSize>((resolve, reject) => {
      zstd.decompress.async(context, out, rawLength, src, src.length, (error, done) => {
        if (error === null || error === undefined) resolve(done);
        else reject(failed(step, describeError(error)));
      });
    });
    expectLength(checked(zstd, result, step), rawLength);
    return out;
  } finally {
    zstd.freeDecompression.push(context);
    keptUntilNow(prefix);
  }
}

/** What a call reads by its address alone must not be collected before: it is named once more after the call. */
function keptUntilNow(bytes: Uint8Array): number {
  return bytes.length;
}

/** @throws ZSTD_FAILED when no input of this length comes to so much */
function roomFor(src: Uint8Array, rawLength: number): Uint8Array {
  // Not set to zero first: it is handed out only once it was written to its end.
  if (rawLength <= src.length * MAX_EXPANSION)
    return new Uint8Array(Buffer.allocUnsafeSlow(rawLength).buffer);
  throw failed(`decompressing ${src.length} bytes`, `they cannot come to ${rawLength}`);
}

function checked(zstd: Library, result: NativeSize, step: string): number {
  if (zstd.isError(result) !== 0) throw failed(step, zstd.errorName(result));
  return Number(result);
}

function expectLength(length: number, wanted: number): void {
  if (length !== wanted) throw failed('decompressing', `${length} bytes came out, ${wanted} were expected`);
}

function failed(step: string, reason: string): CheckpointError {
  return new CheckpointError('ZSTD_FAILED', `zstd: ${step}: ${reason}`);
}

function library(): Library {
  loaded ??= load();
  return loaded;
}

function load(): Library {
  try {
    // Node.js has a zstd of its own since 22.15, and exports its functions: without RTLD_DEEPBIND calls inside of the library
    // would go there, with contexts of another version.
    const lib = koffi.load(LIBRARY, { deep: true });
    const create = lib.func('void *ZSTD_createCCtx(void)') as () => Handle;
    const createD = lib.func('void *ZSTD_createDCtx(void)') as () => Handle;
    return {
      compress: lib.func(
        'size_t ZSTD_compressCCtx(void *cctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize, int level)',
      ) as Library['compress'],
      decompress: lib.func(
        'size_t ZSTD_decompressDCtx(void *dctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
      ) as Library['decompress'],
      compressStream: lib.func(
        'size_t ZSTD_compressStream2(void *cctx, void *output, void *input, int endOp)',
      ) as Library['compressStream'],
      setParameter: lib.func(
        'size_t ZSTD_CCtx_setParameter(void *cctx, int param, int value)',
      ) as Library['setParameter'],
      setSourceSize: lib.func(
        'size_t ZSTD_CCtx_setPledgedSrcSize(void *cctx, unsigned long long size)',
      ) as Library['setSourceSize'],
      reset: lib.func('size_t ZSTD_CCtx_reset(void *cctx, int reset)') as Library['reset'],
      compress2: lib.func(
        'size_t ZSTD_compress2(void *cctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
      ) as Library['compress2'],
      refPrefix: lib.func(
        'size_t ZSTD_CCtx_refPrefix(void *cctx, uintptr_t prefix, size_t size)',
      ) as Library['refPrefix'],
      refPrefixD: lib.func(
        'size_t ZSTD_DCtx_refPrefix(void *dctx, uintptr_t prefix, size_t size)',
      ) as Library['refPrefixD'],
      bound: lib.func('size_t ZSTD_compressBound(size_t srcSize)') as Library['bound'],
      isError: lib.func('unsigned int ZSTD_isError(size_t code)') as Library['isError'],
      errorName: lib.func('const char *ZSTD_getErrorName(size_t code)') as Library['errorName'],
      compressionContext: create(),
      decompressionContext: createD(),
      createDecompression: createD,
      freeDecompression: [],
      output: new Uint8Array(0),
    };
  } catch (cause) {
    throw new CheckpointError('ZSTD_MISSING', `loading ${LIBRARY}`, {
      cause,
      hint: 'install the package libzstd1 (Debian) or libzstd (Fedora, SUSE)',
    });
  }
}
