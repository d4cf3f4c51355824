import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { qmpGuard } from '../../adapters/kvm/run/qmp-guard.js';
import {
  isLeftPaused,
  pauseMarkerPath,
  setPauseMarker,
  setTakenAway,
} from '../../adapters/guard/pause-marker.js';
import { KvmDeviceState } from '../../adapters/kvm/run/kvm-device-state.js';
import { RunStateControl } from '../../adapters/kvm/run/run-state.js';
import { CheckpointError } from '../../src/errors.js';
import type { Json } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';

const qemu = { pid: 4_000_000, startTime: '7', program: '/usr/bin/qemu-system-x86_64' };
/** No process has it: above the kernel's limit of process ids. */
const DEAD_PID = 2 ** 30;

let runtimeDir: string;
let marker: string;
beforeEach(() => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-run-state-'));
  marker = pauseMarkerPath(runtimeDir, qemu);
});
afterEach(() => rmSync(runtimeDir, { recursive: true }));

function machine(): { monitor: FakeMonitor; state: { status: string; contWorks: boolean } } {
  const state = { status: 'running', contWorks: true };
  const monitor = new FakeMonitor((command): Json => {
    if (command === 'stop') state.status = 'paused';
    if (command === 'cont' && state.contWorks) state.status = 'running';
    if (command === 'query-status') return { status: state.status, running: state.status === 'running' };
    return command === 'add-fd' ? { 'fdset-id': 1 } : {};
  });
  return { monitor, state };
}

function control(monitor: FakeMonitor): RunStateControl {
  const guard = qmpGuard(join(runtimeDir, 'none'));
  return new RunStateControl({ monitor, process: qemu, guard, runtimeDir });
}

it('tells a VM that its migration is stopping from one that somebody has paused', async () => {
  const { monitor, state } = machine();
  const runState = control(monitor);
  for (const [status, isFinishing] of [
    ['running', false],
    ['finish-migrate', true],
    ['paused', false],
    ['postmigrate', false],
  ] as const) {
    state.status = status;
    expect(await runState.isFinishingMigration()).toBe(isFinishing);
  }
  await runState.close();
});

it('has no state saved once the pause was taken away: QEMU would stop the VM for it', async () => {
  const { monitor } = machine();
  const runState = control(monitor);
  const devices = new KvmDeviceState(monitor, undefined, { mustHold: () => runState.mustHold() });
  await devices.ready();
  await runState.pause();
  await devices.save();
  const before = monitor.commands.length;
  setTakenAway(marker, runState.owner().attachment, 'resumed');
  await expect(devices.save()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
  expect(monitor.commands).toHaveLength(before);
  await expect(runState.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
  await devices.close();
  await runState.close();
});

describe('whoever times the pause', () => {
  it('is told after all questions and right before stop, and when cont has worked, before the proof', async () => {
    const { monitor, state } = machine();
    const runState = control(monitor);
    let asked: readonly string[] = [];
    await runState.pause({ stopping: () => (asked = [...monitor.commands]) });
    expect(monitor.commands).toEqual([...asked, 'stop']);
    expect(asked).toContain('query-migrate');
    const seen: string[] = [];
    const resumed = runState.resume(() => seen.push(state.status));
    await resumed;
    expect(seen).toEqual(['running']);
    await runState.close();
  });

  it('is told nothing of a VM that stood still already and stays so', async () => {
    const { monitor, state } = machine();
    state.status = 'paused';
    const runState = control(monitor);
    const told: string[] = [];
    expect(await runState.pause({ stopping: () => told.push('stopping') })).toBe(false);
    await runState.resume(() => told.push('running'));
    expect(told).toEqual([]);
    await runState.close();
  });
});

describe('a QEMU that waits for a disk in stop', () => {
  it('is said to do so, not to have refused cont, and its marker stays for the guard', async () => {
    const monitor = new FakeMonitor((command): Json => {
      const isHung = monitor.commands.includes('stop');
      if (isHung) throw new CheckpointError('QMP_TIMEOUT', `no answer to ${command} within 20000 ms`);
      return command === 'query-status' ? { status: 'running', running: true } : {};
    });
    const runState = control(monitor);
    await expect(runState.pause()).rejects.toMatchObject({ code: 'QMP_TIMEOUT' });
    await expect(runState.resume()).rejects.toMatchObject({
      code: 'VM_NOT_RESUMED',
      message: expect.stringContaining('QEMU does not answer'),
      hint: expect.stringContaining('storage hangs'),
    });
    expect(monitor.commands).toContain('cont');
    expect(existsSync(marker)).toBe(true);
    await runState.close();
  });
});

describe('the pause marker', () => {
  it('is there from the pause until the VM runs again', async () => {
    const { monitor } = machine();
    const runState = control(monitor);
    await runState.pause();
    expect(existsSync(marker)).toBe(true);
    await runState.resume();
    expect(existsSync(marker)).toBe(false);
    await runState.close();
  });

  it('goes when somebody else resumes a VM that cont could not, and stays gone when it is stopped again', async () => {
    const { monitor, state } = machine();
    const runState = control(monitor);
    await runState.pause();
    state.contWorks = false;
    await expect(runState.resume()).rejects.toMatchObject({ code: 'VM_NOT_RESUMED' });
    expect(existsSync(marker)).toBe(true);
    state.status = 'running';
    monitor.emit('RESUME');
    expect(existsSync(marker)).toBe(false);
    state.status = 'paused';
    monitor.emit('STOP');
    await runState.close();
    expect(existsSync(marker)).toBe(false);
  });

  it('goes when somebody else resumes the VM in the pause, and the checkpoint fails without touching the VM again', async () => {
    const { monitor, state } = machine();
    const runState = control(monitor);
    await runState.pause();
    monitor.emit('RESUME');
    // Its operator has a reason to stop it now: it must not be resumed for the sake of a checkpoint.
    state.status = 'paused';
    expect(existsSync(marker)).toBe(false);
    await expect(runState.resume()).rejects.toMatchObject({ code: 'VM_STATE', retryable: true });
    expect(monitor.commands).not.toContain('cont');
    await runState.close();
  });

  it('goes, and the checkpoint fails, when the VM is found running at the end of the pause', async () => {
    const { monitor, state } = machine();
    const runState = control(monitor);
    await runState.pause();
    state.status = 'running';
    await expect(runState.resume()).rejects.toMatchObject({ code: 'VM_STATE', retryable: true });
    expect(existsSync(marker)).toBe(false);
    await runState.close();
  });

  it('counts once its Cairn is gone, unless it was cut off while it was written', async () => {
    expect(await isLeftPaused(marker)).toBe(false);
    setPauseMarker(marker, { pid: DEAD_PID, startTime: '1', attachment: 'a' });
    expect(await isLeftPaused(marker)).toBe(true);
    for (const text of ['', '{"pid":10737', '{"pid":"1"}', 'null']) {
      writeFileSync(marker, text);
      expect(await isLeftPaused(marker)).toBe(false);
    }
  });

  it('that was cut off does not make an attaching Cairn resume a VM that its operator paused', async () => {
    const { monitor, state } = machine();
    state.status = 'paused';
    writeFileSync(marker, '');
    const runState = control(monitor);
    expect(await runState.recover()).toBe(false);
    expect(monitor.commands).not.toContain('cont');
    await runState.close();
  });
});
