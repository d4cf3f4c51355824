/** Xen's own tool `xl`, for what has no stable library: the configuration as JSON, names, restoring. */

import { CheckpointError, isCheckpointError } from '../../../src/errors.js';
import { failureOf, runProgram, type ProgramResult } from '../../../src/host/run-program.js';
import type { Json, JsonObject } from '../../../src/types.js';

/**
 * Xen's tools answer within a second. One that waits for a lock of libxl or for a xenstored that hangs is
 * given up.
 */
const LIMIT_MS = 30_000;

/** @returns stdout. @throws FFI_FAILED with what xl said, VM_UNSUPPORTED when there is no xl */
export function runXl(args: readonly string[]): Promise<string> {
  return runXenTool('xl', args, 'xen-utils');
}

/** @throws FFI_FAILED with what it said, VM_UNSUPPORTED when it is not there */
export async function runXenTool(
  program: string,
  args: readonly string[],
  packageName: string,
): Promise<string> {
  const result = await runProgram(program, args, { limitMs: LIMIT_MS });
  if (result.kind === 'done') return result.stdout;
  if (result.kind === 'missing') {
    throw new CheckpointError('VM_UNSUPPORTED', `the program ${program} is not there`, {
      hint: `install Xen's tools (Debian: ${packageName})`,
    });
  }
  const command = [program, ...args].join(' ');
  throw new CheckpointError('FFI_FAILED', `${command} failed: ${lastLine(program, result)}`, {
    ...(result.kind === 'late' ? { hint: 'does xl list answer? if not, look after xenstored' } : {}),
  });
}

/** What libxl says last is what it made of the lines before. */
function lastLine(program: string, result: ProgramResult): string {
  return failureOf(program, result).split('; ').at(-1) ?? '';
}

/** Domain id by name, id or uuid. @throws VM_UNREACHABLE when there is none */
export async function domainIdOf(name: string): Promise<number> {
  try {
    const domid = Number((await runXl(['domid', name])).trim());
    if (Number.isInteger(domid) && domid > 0) return domid;
  } catch (cause) {
    if (isCheckpointError(cause, 'VM_UNSUPPORTED')) throw cause;
    const asNumber = Number(name);
    if (Number.isInteger(asNumber) && asNumber > 0) return asNumber;
    throw new CheckpointError('VM_UNREACHABLE', `there is no domain called "${name}"`, {
      cause,
      hint: 'xl list shows what runs on this host',
    });
  }
  throw new CheckpointError('VM_UNREACHABLE', `"${name}" is no guest of this host`);
}

/**
 * The configuration that libxl keeps of a domain, without what belongs to this run of it.
 * @throws FFI_FAILED, VM_GONE
 */
export async function domainConfig(domid: number): Promise<JsonObject> {
  const listed = JSON.parse(await runXl(['list', '-l', String(domid)])) as Json;
  const entry = Array.isArray(listed) ? (listed as readonly Json[])[0] : undefined;
  const config = objectOf(objectOf(entry).config);
  if (Object.keys(config).length === 0) throw new CheckpointError('VM_GONE', `xl knows no domain ${domid}`);
  const created = Object.entries(objectOf(config.c_info)).filter(([key]) => key !== 'domid');
  return { ...config, c_info: Object.fromEntries(created) };
}

export function objectOf(value: Json | undefined): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}

export function listOf(value: Json | undefined): readonly Json[] {
  return Array.isArray(value) ? (value as readonly Json[]) : [];
}

export function textOf(value: Json | undefined): string {
  return typeof value === 'string' ? value : '';
}

/** libxl writes booleans of its defbool type as "True", others as true or 1. */
export function isSet(value: unknown): boolean {
  return value === true || value === 'True' || (typeof value === 'number' && value !== 0);
}
