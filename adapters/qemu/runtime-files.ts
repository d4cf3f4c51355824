/**
 * The end of files in the runtime folder whose process has ended.
 *
 * One rule holds for all of them, those of every tracker too (`processFile`): KIND-PID-START, then nothing,
 * or a dot or dash and anything. What keeps to it is swept without being listed here.
 */

import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess } from '../../src/host/process-identity.js';

const OF_A_PROCESS = /^[a-z][a-z-]*-(\d+)-(\d+)(?:[.-].*)?$/;
/** The core's record of a running VM, named after `VmIdentity.instance`, which is a process only here. */
const LEDGER = /^ledger-kvm-(\d+)_(\d+)(?:\..*)?$/;

/** Removes what ended processes left. Best effort: nothing depends on it. */
export async function sweepRuntimeDir(runtimeDir: string): Promise<void> {
  for (const name of await readdir(runtimeDir).catch(() => [])) {
    const of = OF_A_PROCESS.exec(name) ?? LEDGER.exec(name);
    if (of === null || (await isSameProcess(Number(of[1]), of[2]!))) continue;
    await rm(join(runtimeDir, name), { recursive: true, force: true }).catch(() => undefined);
  }
}
