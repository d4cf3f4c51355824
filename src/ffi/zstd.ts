/**
 * zstd through the system's libzstd.so.1, which dpkg and rpm themselves depend on.
 *
 * One compression and one decompression context per thread, kept for the life of the thread: creating one costs more than
 * compressing a frame. The asynchronous call uses a context of its own.
 * Source: zstd.h, simple API and explicit contexts.
 */

import koffi from 'koffi';

import { CheckpointError, describeError } from '../errors.js';

const LIBRARY = 'libzstd.so.1';
/** ZSTD_maxCLevel() of every libzstd since 1.3. */
const MAX_LEVEL = 22;

type Handle = unknown;
type NativeSize = number | bigint;

interface Library {
  readonly compress: (
    context: Handle,
    dst: Uint8Array,
    dstSize: number,
    src: Uint8Array,
    srcSize: number,
    level: number,
  ) => NativeSize;
  readonly decompress: (
    context: Handle,
    dst: Uint8Array,
    dstSize: number,
    src: Uint8Array,
    srcSize: number,
  ) => NativeSize;
  readonly decompressAlone: {
    async(
      dst: Uint8Array,
      dstSize: number,
      src: Uint8Array,
      srcSize: number,
      done: (error: unknown, result: NativeSize) => void,
    ): void;
  };
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
  if (zstd.output.length < bound) zstd.output = new Uint8Array(bound);
  // SAFETY: both buffers are alive during the synchronous call and their lengths are passed along.
  const result = zstd.compress(
    zstd.compressionContext,
    zstd.output,
    zstd.output.length,
    src,
    src.length,
    level,
  );
  return zstd.output.slice(0, checked(zstd, result, `compressing ${src.length} bytes`));
}

/**
 * Decompresses what must come to exactly `rawLength` bytes. Caller owns the result. The input is not trusted: the caller
 * bounds `rawLength`, nothing is written past it.
 * @throws ZSTD_FAILED when the input is damaged or comes to another length, ZSTD_MISSING
 */
export function decompress(src: Uint8Array, rawLength: number): Uint8Array {
  const zstd = library();
  const out = new Uint8Array(rawLength);
  // SAFETY: as in `compress`; zstd never writes past the destination length.
  const result = zstd.decompress(zstd.decompressionContext, out, rawLength, src, src.length);
  expectLength(checked(zstd, result, `decompressing ${src.length} bytes`), rawLength);
  return out;
}

/** As `decompress`, on another thread. `src` must not change until the promise settles. */
export async function decompressAsync(src: Uint8Array, rawLength: number): Promise<Uint8Array> {
  const zstd = library();
  const out = new Uint8Array(rawLength);
  const step = `decompressing ${src.length} bytes`;
  // SAFETY: `out` and `src` are held by this function until the call is done.
  const result = await new Promise<NativeSize>((resolve, reject) => {
    zstd.decompressAlone.async(out, rawLength, src, src.length, (error, done) => {
      if (error === null || error === undefined) resolve(done);
      else reject(failed(step, describeError(error)));
    });
  });
  expectLength(checked(zstd, result, step), rawLength);
  return out;
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
    const lib = koffi.load(LIBRARY);
    const create = lib.func('void *ZSTD_createCCtx(void)') as () => Handle;
    const createD = lib.func('void *ZSTD_createDCtx(void)') as () => Handle;
    return {
      compress: lib.func(
        'size_t ZSTD_compressCCtx(void *cctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize, int level)',
      ) as Library['compress'],
      decompress: lib.func(
        'size_t ZSTD_decompressDCtx(void *dctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
      ) as Library['decompress'],
      decompressAlone: lib.func(
        'size_t ZSTD_decompress(void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
      ),
      bound: lib.func('size_t ZSTD_compressBound(size_t srcSize)') as Library['bound'],
      isError: lib.func('unsigned int ZSTD_isError(size_t code)') as Library['isError'],
      errorName: lib.func('const char *ZSTD_getErrorName(size_t code)') as Library['errorName'],
      compressionContext: create(),
      decompressionContext: createD(),
      output: new Uint8Array(0),
    };
  } catch (cause) {
    throw new CheckpointError('ZSTD_MISSING', `loading ${LIBRARY}`, {
      cause,
      hint: 'install the package libzstd1 (Debian) or libzstd (Fedora, SUSE)',
    });
  }
}
