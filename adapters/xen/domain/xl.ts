/** Xen's own tool `xl`, for what has no stable library: the configuration as JSON, names, restoring. */

import { execFile } from 'node:child_process';

import { CheckpointError, isCheckpointError, systemErrorCode } from '../../../src/errors.js';
import type { Json, JsonObject } from '../../../src/types.js';

const MAX_OUTPUT_BYTES = 16 << 20;

/** @returns stdout. @throws FFI_FAILED with what xl said, VM_UNSUPPORTED when there is no xl */
export function runXl(args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile('xl', args, { maxBuffer: MAX_OUTPUT_BYTES }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(xlFailed(args, error, stderr));
    });
  });
}

function xlFailed(args: readonly string[], cause: unknown, stderr: string): CheckpointError {
  if (systemErrorCode(cause) === 'ENOENT') {
    return new CheckpointError('VM_UNSUPPORTED', 'the program xl is not there', {
      cause,
      hint: "install Xen's tools (Debian: xen-utils)",
    });
  }
  const said = stderr.trim().split('\n').at(-1) ?? '';
  return new CheckpointError('FFI_FAILED', `xl ${args.join(' ')} failed${said === '' ? '' : `: ${said}`}`, {
    cause,
  });
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

/** The configuration that libxl keeps of a domain, without what belongs to this run of it. @throws FFI_FAILED, VM_GONE */
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
