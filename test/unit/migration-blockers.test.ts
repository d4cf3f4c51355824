import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { findBlockers } from '../../adapters/kvm/inspect/blockers.js';
import { KvmDeviceState } from '../../adapters/kvm/run/kvm-device-state.js';
import { KvmRunState } from '../../adapters/kvm/run/kvm-run-state.js';
import { qmpGuard } from '../../adapters/kvm/run/qmp-guard.js';
import { RunStateControl } from '../../adapters/kvm/run/run-state.js';
import { Migration } from '../../adapters/kvm/trackers/qmp-stream/migration.js';
import { blockersOf, refuseBlocked, remedyFor } from '../../adapters/qemu/migration-blockers.js';
import { CheckpointError } from '../../src/errors.js';
import { exitCodeOf } from '../../src/cli/exit-codes.js';
import type { Json, JsonObject } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';

const NVME = 'non-migratable device: 0000:00:04.0/nvme';
const BLOCKED = { 'blocked-reasons': [NVME] };

describe("QEMU's own reasons against a migration", () => {
  it('are none where it gives none, whatever became of an earlier migration', () => {
    for (const reply of [{}, { status: 'failed' }, { 'blocked-reasons': [] }] as Json[]) {
      expect(blockersOf(reply)).toEqual([]);
    }
  });

  it('refuse by code, with the reason, what to do, and exit code 22', () => {
    expect(() => refuseBlocked(blockersOf(BLOCKED))).toThrow(
      expect.objectContaining({
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining(NVME) as unknown,
        hint: expect.stringContaining('virtio-blk') as unknown,
        detail: { hazard: 'MIGRATION_BLOCKED', reasons: [NVME] },
      }),
    );
    expect(exitCodeOf('VM_UNSUPPORTED')).toBe(22);
  });

  it('count also where they cannot be read', () => {
    for (const reasons of [7, 'no', {}, [null], [[]]] satisfies Json[]) {
      expect(blockersOf({ 'blocked-reasons': reasons })).toHaveLength(1);
    }
  });

  it('are shown in bounded length', () => {
    const reasons = Array.from({ length: 500 }, () => 'x'.repeat(5000));
    expect(blockersOf({ 'blocked-reasons': reasons }).join('').length).toBeLessThan(10_000);
  });

  it('come each with its remedy, once', () => {
    const share = "Migration is disabled when VirtFS export path '/x' is mounted in the guest";
    expect(remedyFor([NVME, NVME, share])).toBe(
      'give the disk to the guest as virtio-blk or virtio-scsi; ' +
        'unmount the share in the guest for as long as the checkpoint takes',
    );
    expect(remedyFor(['something new'])).toMatch(/detach that device/);
  });
});

describe('a virtiofs share of a QEMU that lists it as no blocker', () => {
  const withShare = (status: () => Json): FakeMonitor =>
    new FakeMonitor((command, args: JsonObject) => {
      if (command === 'qom-list' && args.path === '/machine/peripheral') {
        return [{ name: 'fs0', type: 'child<vhost-user-fs-pci>' }];
      }
      return command === 'x-query-virtio-status' ? status() : {};
    });
  const protocols = (...names: readonly string[]): Json => ({
    'vhost-dev': { 'protocol-features': { protocols: [...names] } },
  });

  it('is refused when its daemon does not hand its state on', async () => {
    const reasons = await findBlockers(withShare(() => protocols('VHOST_USER_PROTOCOL_F_MQ: many queues')));
    expect(reasons).toEqual([expect.stringContaining('vhost-user-fs-pci (/machine/peripheral/fs0)')]);
    expect(remedyFor(reasons)).toMatch(/virtiofs/);
  });

  it('is refused when QEMU does not tell', async () => {
    const unknown = withShare(() => {
      throw new CheckpointError('QMP_COMMAND', 'The command x-query-virtio-status has not been found');
    });
    expect(await findBlockers(unknown)).toHaveLength(1);
  });

  it('is taken when its daemon does', async () => {
    const able = withShare(() => protocols('VHOST_USER_PROTOCOL_F_DEVICE_STATE: state transfer'));
    expect(await findBlockers(able)).toEqual([]);
  });
});

describe('the pause of a checkpoint', () => {
  let runtimeDir: string;
  beforeEach(() => {
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-blockers-'));
  });
  afterEach(() => rmSync(runtimeDir, { recursive: true }));

  /** @param blockedFrom number of the question to query-migrate from which on QEMU names a blocker */
  function paused(blockedFrom: number): {
    monitor: FakeMonitor;
    runState: KvmRunState;
    end: () => Promise<void>;
  } {
    let asked = 0;
    let status = 'running';
    const monitor = new FakeMonitor((command): Json => {
      if (command === 'stop') status = 'paused';
      if (command === 'cont') status = 'running';
      if (command === 'query-status') return { status, running: status === 'running' };
      if (command === 'query-migrate') return ++asked >= blockedFrom ? BLOCKED : {};
      return command === 'add-fd' ? { 'fdset-id': 1 } : {};
    });
    const control = new RunStateControl({
      monitor,
      process: { pid: 4_000_000, startTime: '7', program: '/usr/bin/qemu-system-x86_64' },
      guard: qmpGuard(join(runtimeDir, 'none')),
      runtimeDir,
    });
    const devices = new KvmDeviceState(monitor);
    return {
      monitor,
      runState: new KvmRunState(control, devices),
      end: async () => {
        await devices.close();
        await control.close();
      },
    };
  }

  it('is not begun when a device came while memory was copied', async () => {
    const { monitor, runState, end } = paused(1);
    await expect(runState.pause()).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(monitor.commands).not.toContain('stop');
    await end();
  });

  it('ends before the state is asked for when a device came right before the stop', async () => {
    const { monitor, runState, end } = paused(2);
    await expect(runState.pause()).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(monitor.commands).toContain('stop');
    expect(monitor.commands).not.toContain('xen-save-devices-state');
    // What the engine does after any failure in the pause.
    await runState.resume();
    expect(await runState.read()).toBe('running');
    await end();
  });

  it('is like any other for a VM that QEMU would migrate', async () => {
    const { runState, end } = paused(Infinity);
    expect(await runState.pause()).toBe(true);
    await runState.resume();
    await end();
  });
});

it('a migration that QEMU refuses fails by the same code', async () => {
  const monitor = new FakeMonitor((command) => {
    if (command === 'migrate') throw new CheckpointError('QMP_COMMAND', `State blocked by ${NVME}`);
    return command === 'query-migrate' ? BLOCKED : {};
  });
  await expect(Migration.start(monitor, 0)).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  expect(monitor.commands).toContain('closefd');
});
