/** Files of the runtime folder that belong to one QEMU process, and their end when that process has ended. */

import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess } from '../../src/checkpoint/process-identity.js';

/** ramblocks-PID-START.json (ram-blocks.ts), uffd- (arming.ts), paused- (pause-marker.ts). */
const OF_A_PROCESS = /^(?:ramblocks|uffd|paused)-(\d+)-(\d+)\.json/;

/** Removes what ended QEMUs left. Best effort: nothing depends on it. */
export async function sweepRuntimeDir(runtimeDir: string): Promise<void> {
  for (const name of await readdir(runtimeDir).catch(() => [])) {
    const of = OF_A_PROCESS.exec(name);
    if (of === null || (await isSameProcess(Number(of[1]), of[2]!))) continue;
    await rm(join(runtimeDir, name), { force: true }).catch(() => undefined);
  }
}
