/**
 * What a checkpoint of a QEMU recorded of how it was started, read back with care: it comes from a
 * repository.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { JsonObject, Json } from '../../../src/types.js';
import { onlyKept } from '../inspect/kept-environment.js';
import { readPresentDisks, type PresentDisk } from '../inspect/present-disks.js';
import { readPresentObjects, type PresentObject } from '../inspect/present-objects.js';
import type { ProcessRights } from '../inspect/process-rights.js';
import { readRights } from '../inspect/rights-record.js';

export interface RecordedMachine {
  /** The arguments without the program's own name. */
  readonly argv: readonly string[];
  readonly cwd: string;
  readonly program: string;
  /** Variables as `kept-environment.ts` chooses them; of older checkpoints LD_LIBRARY_PATH at most. */
  readonly env: Readonly<Record<string, string>>;
  /** As whom it ran; undefined in checkpoints of older versions. */
  readonly rights: ProcessRights | undefined;
  readonly qemuVersion: string;
  /** Resolved, such as pc-i440fx-7.2. */
  readonly machineType: string;
  /** Absolute path of the QMP socket through which it was attached; empty when it was not attached by one. */
  readonly qmpPath: string;
  /** The disks that it had at the checkpoint; undefined in checkpoints of older versions. */
  readonly presentDisks: readonly PresentDisk[] | undefined;
  /** Objects whose settings it had; none in checkpoints of older versions. */
  readonly presentObjects: readonly PresentObject[];
}

/** @throws RESTORE_FAILED when something that a start needs is missing */
export function recordedMachine(machine: JsonObject): RecordedMachine {
  const argv = strings(machine.argv);
  if (argv === undefined || argv.length === 0) throw incomplete('argv');
  const env = machine.env;
  return {
    // The name that the program was called by comes first, as in /proc/PID/cmdline.
    argv: argv.slice(1),
    cwd: text(machine, 'cwd'),
    program: text(machine, 'program'),
    env: isObject(env) ? onlyKept(Object.entries(env)) : {},
    rights: readRights(machine.rights),
    qemuVersion: optionalText(machine, 'qemuVersion'),
    machineType: text(machine, 'machineType'),
    qmpPath: optionalText(machine, 'qmpPath'),
    presentDisks: readPresentDisks(machine.presentDisks),
    presentObjects: readPresentObjects(machine.presentObjects),
  };
}

function strings(value: Json | undefined): readonly string[] | undefined {
  if (!Array.isArray(value)) return undefined;
  return value.every((item) => typeof item === 'string' && !item.includes('\0'))
    ? (value as string[])
    : undefined;
}

function text(machine: JsonObject, key: string): string {
  const value = optionalText(machine, key);
  if (value === '') throw incomplete(key);
  return value;
}

function optionalText(machine: JsonObject, key: string): string {
  const value = machine[key];
  return typeof value === 'string' && !value.includes('\0') ? value : '';
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function incomplete(key: string): CheckpointError {
  return new CheckpointError(
    'RESTORE_FAILED',
    `the checkpoint did not record how its VM was started ("${key}" is missing)`,
    {
      hint: 'start a QEMU with the same devices and -incoming yourself and name its address with --to',
    },
  );
}
