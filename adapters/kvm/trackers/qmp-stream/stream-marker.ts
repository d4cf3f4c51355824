/**
 * A file in the runtime folder that says: that Cairn has a migration of this VM under way, and these are the
 * operator's settings. If Cairn and its guard both die, the next Cairn that attaches finds it and cleans up.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

import { processFile } from '../../../../src/host/runtime-file.js';
import { isSameProcess } from '../../../../src/host/process-identity.js';
import type { Json, JsonObject } from '../../../../src/types.js';
import { isMigrating } from '../../inspect/hazards.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { markerOf } from '../../../guard/pause-marker.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import { asArray, asNumber, asObject, asText } from '../../../qemu/qmp-json.js';
import { abandonMigration, migrationStatus } from './abandon.js';
import { setSettings, type MigrationSettings } from './settings.js';

export function streamMarkerPath(runtimeDir: string, qemu: QemuProcess): string {
  return processFile(runtimeDir, 'stream', qemu);
}

export interface StreamMarker {
  /** See `PauseMarker`: the guard of a stream goes by this file as that of a pause does by its own. */
  readonly attachment: string;
  readonly putBack: MigrationSettings;
  /** Nothing but the settings is left to be seen to. A migration that is under way now is somebody else's. */
  readonly isOver: boolean;
}

export function setStreamMarker(path: string, marker: StreamMarker): void {
  writeFileSync(path, JSON.stringify({ ...markerOf(marker.attachment), ...marker }), { mode: 0o600 });
}

export function clearStreamMarker(path: string): void {
  rmSync(path, { force: true });
}

/**
 * Cleans up behind a Cairn that died while it streamed.
 * @returns true when there was something to do
 * @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE
 */
export async function recoverStream(path: string, monitor: Monitor): Promise<boolean> {
  const marker = await readMarker(path);
  if (marker === undefined || (await isSameProcess(asNumber(marker.pid), asText(marker.startTime))))
    return false;
  if (marker.isOver === true && isMigrating(await migrationStatus(monitor))) return false;
  await finishStream(path, monitor);
  clearStreamMarker(path);
  return true;
}

/** Ends the migration that the marker speaks of, which stays. @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE */
export async function finishStream(path: string, monitor: Monitor): Promise<void> {
  const marker = await readMarker(path);
  if (marker === undefined) return;
  const { capabilities, parameters } = asObject(marker.putBack);
  const putBack = { capabilities: asArray(capabilities), parameters: asObject(parameters) };
  if (marker.isOver === true) await setSettings(monitor, putBack);
  else await abandonMigration(monitor, putBack);
}

/**
 * Undefined when there is none, or one that was cut off while it was written: that is before anything was
 * changed.
 */
async function readMarker(path: string): Promise<JsonObject | undefined> {
  try {
    return asObject(JSON.parse(await readFile(path, 'utf8')) as Json);
  } catch {
    return undefined;
  }
}
