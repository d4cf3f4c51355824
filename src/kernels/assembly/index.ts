/**
 * The hot loops, compiled to WebAssembly with SIMD.
 *
 * Rules of this module: pointers and load/store only, no objects, no static data, so that the whole linear
 * memory belongs to the importer. The memory import carries no maximum: the importer may bring any non-shared
 * memory of up to 4 GiB. Loops count what remains instead of comparing end pointers, which may wrap to 0 at 4
 * GiB. Arguments are checked by the caller (`checked-kernels.ts`); only the decoders read data that nobody
 * has checked. `scalar.ts` is the twin: same results byte for byte.
 */
export { andNot, orInto, popcount } from './words';
export { edgesToRuns, scanEdges } from './scan-runs';
export { isZeroPages } from './zero';
export { findAnchors } from './anchors';
export { encodePages } from './encode';
export { decodeInto, decodePages } from './decode';
export { hash64 } from './hash64';
