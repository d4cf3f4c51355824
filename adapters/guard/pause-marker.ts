/**
 * A file in the runtime folder that says: this VM is paused by that Cairn, for a moment. If Cairn dies in
 * that moment, its pause guard finds it and resumes the VM; if both die, the next Cairn that attaches does.
 *
 * It is written before `stop`. One that cannot be read was cut off while it was written, so nothing was
 * paused.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

import { processFile } from '../../src/host/runtime-file.js';
import { isSameProcess, ownIdentity, type ProcessIdentity } from '../../src/host/process-identity.js';

/** The process is the Cairn that paused the VM. */
export interface PauseMarker extends ProcessIdentity {
  /** Tells attachments of one process apart: a guard acts only for its own. */
  readonly attachment: string;
  /** Socket of a frozen guest's agent; empty when that is reached through a manager. */
  readonly agentPath?: string;
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

export function clearPauseMarker(path: string): void {
  rmSync(path, { force: true });
}

/** True when the marker is there and the process that set it is gone. */
export async function isLeftPaused(path: string): Promise<boolean> {
  const owner = await readPauseMarker(path);
  return owner !== undefined && !(await isSameProcess(owner.pid, owner.startTime));
}

/** Undefined when there is none, or none that was written whole. */
export async function readPauseMarker(path: string): Promise<PauseMarker | undefined> {
  try {
    const { pid, startTime, attachment, agentPath } = JSON.parse(
      await readFile(path, 'utf8'),
    ) as Partial<PauseMarker>;
    const isWhole =
      typeof pid === 'number' && typeof startTime === 'string' && typeof attachment === 'string';
    if (!isWhole) return undefined;
    return { pid, startTime, attachment, ...(typeof agentPath === 'string' ? { agentPath } : {}) };
  } catch {
    return undefined;
  }
}
