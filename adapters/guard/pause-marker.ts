/**
 * A file in the runtime folder that says: this VM is paused by that Cairn, for a moment. If Cairn dies in
 * that moment, its pause guard finds it and resumes the VM; if both die, the next Cairn that attaches does.
 *
 *     absent     nobody has paused the VM
 *     set        that Cairn is about to pause it, or has
 *     resuming   its guard has taken the pause away, because it went on for too long; the VM may still stand
 *     resumed    the guard has made the VM run again: what stands still from here on is somebody else's
 *
 *     rewind     guest memory is being put back to an earlier checkpoint, and is of no moment until that is done:
 *                nobody may resume the VM but whoever finishes the rewind (`adapters/kvm/rewind`)
 *
 * It is written before `stop`. The guard says that it takes the pause away before it resumes the VM: a Cairn
 * that finds the marker merely set has a pause that nobody has ended up to that moment. One that cannot be
 * read was cut off while it was written, so nothing was paused.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';

import { processFile, writeRuntimeFileSync } from '../../src/host/runtime-file.js';
import { isSameProcess, ownIdentity, type ProcessIdentity } from '../../src/host/process-identity.js';
import type { JsonObject } from '../../src/types.js';

/** How far a guard has got that took the pause away from a Cairn that did not end it. */
export type TakenAway = 'resuming' | 'resumed';

/** The process is the Cairn that paused the VM. */
export interface PauseMarker extends ProcessIdentity {
  /** Tells attachments of one process apart: a guard acts only for its own. */
  readonly attachment: string;
  /** Socket of a frozen guest's agent; empty when that is reached through a manager. */
  readonly agentPath?: string;
  readonly takenAway?: TakenAway;
  /** Set while the VM is being rewound; what whoever takes it up has to know. */
  readonly rewind?: JsonObject;
}

/** What a marker of this process says. */
export function markerOf(attachment: string): PauseMarker {
  return { ...ownIdentity(), attachment };
}

export function pauseMarkerPath(runtimeDir: string, process: ProcessIdentity): string {
  return processFile(runtimeDir, 'paused', process);
}

/**
 * The same for file systems of the guest that a Cairn has frozen for the pause; see
 * `run/guest-agent/guest-freezer.ts`.
 */
export function frozenMarkerPath(runtimeDir: string, process: ProcessIdentity): string {
  return processFile(runtimeDir, 'frozen', process);
}

/** Synchronous: it is one small write to a tmpfs right before the pause. */
export function setPauseMarker(path: string, owner: PauseMarker): void {
  writeFileSync(path, JSON.stringify(owner), { mode: 0o600 });
}

/**
 * Turns a pause into a rewind, or back, in one step: whoever dies here leaves the one marker or the other.
 * @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO
 */
export function replacePauseMarker(path: string, owner: PauseMarker): void {
  writeRuntimeFileSync(path, JSON.stringify(owner));
}

export function clearPauseMarker(path: string): void {
  rmSync(path, { force: true });
}

/**
 * For a guard: says how far it has got with a pause that it takes away. Whatever else the marker says stays.
 * Does nothing to one of another attachment.
 * @throws STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO
 */
export function setTakenAway(path: string, attachment: string, takenAway: TakenAway): void {
  const marker = readJson(path);
  if (marker?.attachment !== attachment) return;
  writeRuntimeFileSync(path, JSON.stringify({ ...marker, takenAway }));
}

/**
 * True when the marker is there, its process is gone, and no guard has seen to it. One that a guard has seen
 * to is of no use any more, and is removed. A VM that was being rewound is not left paused: it must not run.
 */
export async function isLeftPaused(path: string): Promise<boolean> {
  const owner = readPauseMarker(path);
  if (owner === undefined || isRewinding(owner) || (await isSameProcess(owner.pid, owner.startTime)))
    return false;
  if (owner.takenAway !== 'resumed') return true;
  clearPauseMarker(path);
  return false;
}

/** Guest memory may be of no moment. A rewind whose pause was taken away has written nothing. */
export function isRewinding(marker: PauseMarker | undefined): boolean {
  return marker?.rewind !== undefined && marker.takenAway === undefined;
}

/** Undefined when there is none, or none that was written whole. */
export function readPauseMarker(path: string): PauseMarker | undefined {
  const { pid, startTime, attachment, agentPath, takenAway, rewind } = readJson(path) ?? {};
  if (typeof pid !== 'number' || typeof startTime !== 'string' || typeof attachment !== 'string')
    return undefined;
  return {
    ...{ pid, startTime, attachment },
    ...(typeof agentPath === 'string' ? { agentPath } : {}),
    ...(takenAway === 'resuming' || takenAway === 'resumed' ? { takenAway } : {}),
    ...(typeof rewind === 'object' && rewind !== null && !Array.isArray(rewind)
      ? { rewind: rewind as JsonObject }
      : {}),
  };
}

function readJson(path: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(readFileSync(path, 'utf8'));
    return typeof value === 'object' && value !== null ? (value as JsonObject) : undefined;
  } catch {
    return undefined;
  }
}
