/**
 * A file in the runtime folder that says: this VM is paused by that Cairn, for a moment. If Cairn and its pause guard both die
 * in that moment, the next one that attaches finds it and resumes the VM.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess } from '../../src/checkpoint/process-identity.js';
import type { QemuProcess } from './peer-process.js';

export interface PauseMarker {
  readonly pid: number;
  readonly startTime: string;
}

export function pauseMarkerPath(runtimeDir: string, process: QemuProcess): string {
  return join(runtimeDir, `paused-${process.pid}-${process.startTime}.json`);
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
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch {
    return false;
  }
  try {
    const owner = JSON.parse(text) as Partial<PauseMarker>;
    if (typeof owner.pid === 'number' && typeof owner.startTime === 'string') {
      return !(await isSameProcess(owner.pid, owner.startTime));
    }
  } catch {
    // Half written: its writer died between creating and filling it, which is before the pause.
  }
  return true;
}
