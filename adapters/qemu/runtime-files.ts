/**
 * The end of files in the runtime folder whose process has ended.
 *
 * One rule holds for all of them, those of every tracker too (`processFile`): KIND-PID-START, then nothing,
 * or a dot or dash and anything. What keeps to it is swept without being listed here, in a folder that is
 * Cairn's alone: elsewhere a file of somebody else may have such a name (backup-2026-11.tar).
 */

import { lstat, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess } from '../../src/host/process-identity.js';
import { isRuntimeDirOurs } from '../../src/host/runtime-dir.js';

const OF_A_PROCESS = /^[a-z][a-z-]*-([1-9]\d*)-([1-9]\d*)(?:[.-].*)?$/;
/** The core's record of a running VM, named after `VmIdentity.instance`, which is a process only here. */
const LEDGER = /^ledger-(?:kvm|libvirt)-([1-9]\d*)_([1-9]\d*)(?:\..*)?$/;

/** Removes what ended processes left. Best effort: nothing depends on it. */
export async function sweepRuntimeDir(runtimeDir: string): Promise<void> {
  if (!(await isRuntimeDirOurs(runtimeDir))) return;
  for (const name of await readdir(runtimeDir).catch(() => [])) {
    const of = OF_A_PROCESS.exec(name) ?? LEDGER.exec(name);
    if (of === null || (await isSameProcess(Number(of[1]), of[2]!))) continue;
    const path = join(runtimeDir, name);
    const found = await lstat(path).catch(() => undefined);
    if (found?.isFile() !== true && found?.isDirectory() !== true) continue;
    await rm(path, { recursive: true, force: true }).catch(() => undefined);
  }
}
