/**
 * A file in the runtime folder that says: this process was forked from that checkpoint. The checkpoints of
 * the VM tell it on. It is there from before the VM runs, and goes with the process (`sweepRuntimeDir`).
 */

import { readFileSync, rmSync } from 'node:fs';

import type { ForkOrigin } from '../hypervisor/fork-origin.js';
import { parseJson } from '../records/json-text.js';
import type { ProcessIdentity } from './process-identity.js';
import { processFile, writeRuntimeFileSync } from './runtime-file.js';

const KIND = 'forked';

/** @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO */
export function writeForkNote(
  runtimeDir: string,
  { vm, origin }: { readonly vm: ProcessIdentity; readonly origin: ForkOrigin },
): void {
  writeRuntimeFileSync(processFile(runtimeDir, KIND, vm), JSON.stringify(origin));
}

export function removeForkNote(runtimeDir: string, vm: ProcessIdentity): void {
  rmSync(processFile(runtimeDir, KIND, vm), { force: true });
}

/** Undefined for a VM that was not forked on this host, by this user. */
export function readForkNote(runtimeDir: string, vm: ProcessIdentity): ForkOrigin | undefined {
  try {
    const value = parseJson(readFileSync(processFile(runtimeDir, KIND, vm), 'utf8'));
    return isOrigin(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** The runtime folder is this user's alone, so this tells a note of another version, and no more. */
function isOrigin(value: unknown): value is ForkOrigin {
  if (typeof value !== 'object' || value === null) return false;
  const origin = value as Record<string, unknown>;
  return ['repositoryId', 'chain', 'checkpointId'].every((key) => typeof origin[key] === 'string');
}
