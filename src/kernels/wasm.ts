/**
 * The WebAssembly kernels. The module is compiled once per process (per thread, for worker threads) and
 * instantiated for each memory; both take well under a millisecond each, so this is synchronous.
 */

import { readFileSync } from 'node:fs';
import { CheckpointError } from '../errors.js';
import type { RawKernels } from './checked-kernels.js';
import { CheckedKernels } from './checked-kernels.js';
import type { Kernels } from './kernels.js';
import { LinearMemory } from './linear-memory.js';

const MODULE_URL = new URL('./kernels.wasm', import.meta.url);
let compiled: WebAssembly.Module | undefined;

/** @throws KERNELS_UNAVAILABLE when the module is missing or this machine cannot run it */
export function createWasmKernels(memory = new LinearMemory()): Kernels {
  const instance = new WebAssembly.Instance(compiledModule(), { env: { memory: memory.memory } });
  return new CheckedKernels('wasm', memory, instance.exports as unknown as RawKernels);
}

function compiledModule(): WebAssembly.Module {
  try {
    compiled ??= new WebAssembly.Module(readFileSync(MODULE_URL));
    return compiled;
  } catch (cause) {
    throw new CheckpointError('KERNELS_UNAVAILABLE', `loading the kernels from ${MODULE_URL.pathname}`, {
      cause,
      hint: 'reinstall the package (in a source tree: npm run build:kernels); the processor needs SSE4.1 or NEON',
    });
  }
}
