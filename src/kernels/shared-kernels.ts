/**
 * One instance for everything in the process (or worker thread) that just needs a result: bitmap scans,
 * single pages. Its memory is scratch: a user places its input, makes its call and takes the result out
 * before it returns to its caller. Nothing in it survives that. A worker that keeps pages in linear memory
 * makes an instance of its own.
 */

import type { Kernels } from './kernels.js';
import { createWasmKernels } from './wasm.js';

let shared: Kernels | undefined;

/** @throws KERNELS_UNAVAILABLE */
export function sharedKernels(): Kernels {
  shared ??= createWasmKernels();
  return shared;
}
