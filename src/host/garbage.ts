/**
 * Keeps V8's full collections out of checkpoints. Cairn has a small heap and many buffers outside of it, for
 * which V8 started two mark-compacts of 3 to 10 ms in every checkpoint, some of them inside the pause (1 GiB
 * guest, 18 MiB rewritten, Node 20). So it is told to let the heap grow further before it collects, and what
 * has gathered is collected between checkpoints.
 */

import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { libc } from '../ffi/libc.js';

/**
 * The heap may grow by this percentage of what a collection left. With 300 a watcher takes no more memory
 * than before; with 1000 it takes 25 MiB more.
 */
const HEAP_GROWTH_PERCENT = 300;

/** A collection takes 10 to 20 ms, which with a checkpoint every 0.2 s was a tenth of a processor. */
const WORTH_COLLECTING_BYTES = 6 << 20;

const SWEEPING_MS = 50;

let collect: (() => void) | undefined;
/** Bytes in use after the last collection, or the fewest that were seen since. */
let leftBytes = 0;

/** Has V8 let the heap grow further before it collects, for the whole process. A second call does no harm. */
export function letHeapGrow(): void {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
}

/** Collects when enough has gathered. Synchronous, some milliseconds. */
export function collectGarbage(): void {
  const bytes = bytesInUse();
  leftBytes = Math.min(leftBytes, bytes);
  if (bytes - leftBytes >= WORTH_COLLECTING_BYTES) collectNow();
}

/**
 * Collects, and gives what is free back to the kernel: after a full copy some 55 MiB lie between what is
 * still in use, after regrouping some 40. Not after every checkpoint, because the next one would have to
 * fault it in again.
 */
export function returnMemory(): void {
  collectNow();
  libc().mallocTrim();
}

function collectNow(): void {
  collect ??= exposedCollector();
  collect();
  leftBytes = bytesInUse();
  // Buffers are freed by a thread beside, a little later.
  setTimeout(() => (leftBytes = Math.min(leftBytes, bytesInUse())), SWEEPING_MS).unref();
}

/** Bytes in use, buffers outside of the heap included. */
function bytesInUse(): number {
  const { used_heap_size, external_memory } = getHeapStatistics();
  return used_heap_size + external_memory;
}

/**
 * `gc` as a context that is made while `--expose-gc` is set has it; the flag is of no further use after that.
 */
function exposedCollector(): () => void {
  setFlagsFromString('--expose-gc');
  const gc: unknown = runInNewContext('gc');
  setFlagsFromString('--no-expose-gc');
  return typeof gc === 'function' ? (gc as () => void) : () => undefined;
}
