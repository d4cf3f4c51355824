/**
 * Whether a run of a target ended as it must: with a value, or with a CheckpointError whose code says what is wrong, and
 * without a buffer that the input does not justify or memory that it does not take. What a run that does not end, or that
 * takes the whole process with it, has done is seen from outside (`campaign.ts`).
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';

import { isCheckpointError } from '../../src/errors.js';
import { installWatch, stopWatching, watchAllocations } from './allocations.js';
import { justifiedBytes, type FuzzTarget } from './target.js';

export interface Judgement {
  /** Ends of the same kind have the same: a new one makes an input worth mutating. */
  readonly signature: string;
  /** What is wrong; undefined when all is well. */
  readonly problem: string | undefined;
}

/** What is thrown when nobody has thought of a case. */
const NO_REASON_CODES: readonly string[] = ['UNEXPECTED', 'WORKER_FAILED', 'INTERRUPTED'];
/** Garbage that is not collected yet counts as well, so this is some way above what a run takes. */
const FIXED_RESIDENT_BYTES = 160 << 20;
const RESIDENT_BYTES_FOR_EACH = 2048;
const MAX_CAUSES = 8;

const stray: unknown[] = [];

/** Once in a process. Rejections that nobody handles and errors in callbacks count for the run under way. */
export function installOracle(): void {
  installWatch();
  process.on('uncaughtException', (error) => stray.push(error));
  process.on('unhandledRejection', (error) => stray.push(error));
}

export async function judge(target: FuzzTarget, input: Uint8Array): Promise<Judgement> {
  stray.length = 0;
  const before = residentBytes('VmRSS');
  resetPeak();
  watchAllocations((target.allowedBytes ?? justifiedBytes)(input.length));
  let signature: string;
  let problem: string | undefined;
  try {
    signature = `value ${await target.run(input)}`;
  } catch (error) {
    signature = signatureOf(error);
    problem = problemOf(error);
  }
  // Callbacks of sockets and files that were closed still come.
  await turn();
  const allocation = stopWatching();
  const grownBytes = residentBytes('VmHWM') - before;
  if (stray.length > 0) problem ??= `outside of the call: ${problemOf(stray[0]) ?? signatureOf(stray[0])}`;
  if (allocation !== undefined)
    problem ??= `a buffer of ${allocation.bytes} bytes for an input of ${input.length}: ${placeOf(allocation.stack)}`;
  if (grownBytes > FIXED_RESIDENT_BYTES + input.length * RESIDENT_BYTES_FOR_EACH)
    problem ??= `${grownBytes >> 20} MiB of memory for an input of ${input.length} bytes`;
  return { signature, problem };
}

function problemOf(error: unknown): string | undefined {
  if (!isCheckpointError(error)) return `${describe(error)} at ${placeOf(stackOf(error))}`;
  if (NO_REASON_CODES.includes(error.code)) return `code ${error.code}: ${describe(error)}`;
  let cause: unknown = error.cause;
  for (let depth = 0; depth < MAX_CAUSES && cause instanceof Error; depth++, cause = cause.cause) {
    // A mistake in the program, dressed as damage by whoever catches everything.
    if (cause instanceof TypeError || cause instanceof ReferenceError)
      return `${error.code} because of ${describe(cause)} at ${placeOf(stackOf(cause))}`;
  }
  return undefined;
}

/** Numbers and quoted parts come from the input. */
function signatureOf(error: unknown): string {
  const text = describe(error)
    .replace(/"[^"]*"/g, '""')
    .replace(/\/\S+/g, '/')
    .replace(/\d+/g, '0')
    .slice(0, 120);
  return `${isCheckpointError(error) ? error.code : 'other'} ${text} ${placeOf(stackOf(error))}`;
}

/** The innermost place in the product. */
function placeOf(stack: string): string {
  return /dist\/(?:src|adapters)\/(\S+?:\d+):\d+/.exec(stack)?.[1] ?? '';
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? '') : '';
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message.slice(0, 300)}` : typeof error;
}

/** Peak and present size as proc(5) has them; writing 5 to clear_refs begins a new peak. */
function residentBytes(field: 'VmHWM' | 'VmRSS'): number {
  const status = readFileSync('/proc/self/status', 'latin1');
  const at = status.indexOf(`${field}:`);
  return at < 0 ? 0 : Number.parseInt(status.slice(at + field.length + 1), 10) * 1024;
}

function resetPeak(): void {
  writeFileSync('/proc/self/clear_refs', '5');
}
