/**
 * Kills tracers of a guest's QEMU at random, and looks each time whether the guest and QEMU go on as before.
 */

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { attachKvm } from '../../../adapters/kvm/attach.js';
import { unusedDescriptors } from '../../../adapters/kvm/trackers/pagemap-scan/arming.js';
import type { LabMachine } from '../machine.js';
import { ThreadWatch } from './thread-watch.js';

const LOOP = fileURLToPath(new URL('./tracer-loop.js', import.meta.url));
/** Within this time of its begin a tracer is killed, or within this many of its calls. */
const KILL_WITHIN_MS = 60;
const KILL_WITHIN_CALLS = 120;
/**
 * Kills between two looks at the guest, by a Cairn that arms the tracker and puts away what the killed ones
 * left.
 */
const KILLS_A_ROUND = 20;

export interface KillCount {
  kills: number;
  /** Killed while a thread of QEMU was in their hands. */
  whileTracing: number;
  /** Userfaultfds that killed tracers left, all of them found and closed. */
  left: number;
}

export interface KillOptions {
  readonly count: number;
  readonly onRound?: (count: KillCount) => void;
}

/** Ends at the first fault: what comes after it proves nothing. */
export async function killTracers(
  machine: LabMachine,
  { count, onRound }: KillOptions,
): Promise<{ readonly counted: KillCount; readonly faults: readonly string[] }> {
  const counted: KillCount = { kills: 0, whileTracing: 0, left: 0 };
  await machine.guest('lab fill 24');
  const sum = await machine.guest('lab sum');
  await machine.guest('lab memory 16 2000');
  const watch = await ThreadWatch.start(machine.pid);
  while (counted.kills < count) {
    const end = Math.min(count, counted.kills + KILLS_A_ROUND);
    while (counted.kills < end) {
      if (await killOne(machine.pid, watch)) counted.whileTracing++;
      counted.kills++;
      const faults = await watch.faults();
      if (faults.length > 0) return { counted, faults };
    }
    await machine.waitForProgress();
    counted.left += unusedDescriptors(machine.pid).length;
    await armOnce(machine);
    const still = unusedDescriptors(machine.pid).length;
    if (still > 0) return { counted, faults: [`${still} userfaultfds were not closed`] };
    if ((await machine.guest('lab sum')) !== sum)
      return { counted, faults: ["the guest's memory has changed"] };
    onRound?.(counted);
  }
  await machine.guest('lab stop').catch(() => undefined);
  return { counted, faults: [] };
}

/** @returns whether it had a thread in its hands */
async function killOne(pid: number, watch: ThreadWatch): Promise<boolean> {
  const isTimed = Math.random() < 0.5;
  const call = 1 + Math.floor(Math.random() * KILL_WITHIN_CALLS);
  const child = spawn(process.execPath, [LOOP, String(pid)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: isTimed ? {} : { CAIRN_TRACER_FAULT_POINT: String(call) },
  });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  if (!isTimed) {
    await ended;
    return true;
  }
  await new Promise((resolve) => child.stdout.once('data', resolve));
  await sleep(Math.random() * KILL_WITHIN_MS);
  // Stopped first, so that one can see what it was at; a stopped tracer has done nothing more when it is killed.
  child.kill('SIGSTOP');
  await sleep(1);
  const isTracing = watch.isTracedBy(child.pid!);
  child.kill('SIGKILL');
  await ended;
  return isTracing;
}

/** As a Cairn does that comes after the killed ones. */
async function armOnce(machine: LabMachine): Promise<void> {
  const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-tracer-'));
  try {
    const vm = await attachKvm(machine.address, { runtimeDir });
    try {
      await vm.memory.layout();
      const tracker = vm.memory.tracker('pagemap-scan');
      await tracker.start();
      tracker.collect();
      await tracker.stop();
    } finally {
      await vm.close();
    }
  } finally {
    rmSync(runtimeDir, { recursive: true });
  }
}
