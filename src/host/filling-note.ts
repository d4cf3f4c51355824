/**
 * A file in the runtime folder that says: the memory of this VM is still being filled, out of that checkpoint. It is there
 * from before the VM runs until all of its memory is there, whether a page server is at work or not.
 *
 *     starting   the VM runs at any moment; whoever restores it still has its monitor
 *     filling    it runs, or is paused
 *     damaged    pages cannot be read: who needs one of them waits
 */

import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { parseJson } from '../records/json-text.js';
import type { JsonObject } from '../types.js';
import { isSameProcess, processStartTimeSync, type ProcessIdentity } from './process-identity.js';
import { processFile, writeRuntimeFileSync } from './runtime-file.js';

export interface FillingNote {
  readonly state: 'starting' | 'filling' | 'damaged';
  readonly vmAddress: string;
  readonly vmName: string;
  readonly vm: ProcessIdentity;
  /** Address of the repository. */
  readonly repository: string;
  readonly checkpointId: string;
  /** Of the adapter's own. */
  readonly args: JsonObject;
  readonly bytesPerSecond: number;
  readonly server: ProcessIdentity;
  /** Pages that are not zero, and of those the ones that are there. */
  readonly totalPages: number;
  readonly donePages: number;
  /** What cannot be read, as an error; empty when all could be read so far. */
  readonly damage: JsonObject;
  /** The guest needs a page that cannot be read, and waits for it. */
  readonly isAwaited: boolean;
}

const KIND = 'filling';
const NAME = /^filling-\d+-\d+\.json$/;

export function fillingNotePath(runtimeDir: string, vm: ProcessIdentity): string {
  return processFile(runtimeDir, KIND, vm);
}

/** @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO */
export function writeFillingNote(runtimeDir: string, note: FillingNote): void {
  writeRuntimeFileSync(fillingNotePath(runtimeDir, note.vm), JSON.stringify(note));
}

export function removeFillingNote(runtimeDir: string, vm: ProcessIdentity): void {
  rmSync(fillingNotePath(runtimeDir, vm), { force: true });
}

/** Of VMs that live. What cannot be read is left out. */
export function fillingNotes(runtimeDir: string): readonly FillingNote[] {
  let names: readonly string[];
  try {
    names = readdirSync(runtimeDir).filter((name) => NAME.test(name));
  } catch {
    return [];
  }
  return names.flatMap((name) => {
    const note = readNote(join(runtimeDir, name));
    return note !== undefined && isAlive(note.vm) ? [note] : [];
  });
}

function isAlive({ pid, startTime }: ProcessIdentity): boolean {
  return processStartTimeSync(pid) === startTime;
}

export function fillingNoteOf(
  runtimeDir: string,
  is: (note: FillingNote) => boolean,
): FillingNote | undefined {
  return fillingNotes(runtimeDir).find(is);
}

/** Whether its page server lives. */
export function isServed({ server }: FillingNote): Promise<boolean> {
  return isSameProcess(server.pid, server.startTime);
}

function readNote(path: string): FillingNote | undefined {
  try {
    const value = parseJson(readFileSync(path, 'utf8'));
    return isNote(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** The runtime folder is this user's alone, so this tells a note of another version, and no more. */
function isNote(value: unknown): value is FillingNote {
  if (typeof value !== 'object' || value === null) return false;
  const note = value as Record<string, unknown>;
  const isProcess = (one: unknown): boolean =>
    typeof one === 'object' &&
    one !== null &&
    typeof (one as Record<string, unknown>).pid === 'number' &&
    typeof (one as Record<string, unknown>).startTime === 'string';
  return (
    ['starting', 'filling', 'damaged'].includes(String(note.state)) &&
    ['vmAddress', 'vmName', 'repository', 'checkpointId'].every((key) => typeof note[key] === 'string') &&
    ['totalPages', 'donePages', 'bytesPerSecond'].every((key) => typeof note[key] === 'number') &&
    typeof note.isAwaited === 'boolean' &&
    [note.args, note.damage].every((one) => typeof one === 'object' && one !== null && !Array.isArray(one)) &&
    isProcess(note.vm) &&
    isProcess(note.server)
  );
}
