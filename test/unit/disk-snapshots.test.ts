import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import { monitorImages, monitorOverlays } from '../../adapters/disks/qcow2/monitor-snapshots.js';
import { CheckpointError, type ErrorCode } from '../../src/errors.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { FakeMonitor } from '../support/fake-monitor.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-disks-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

function disk(): VmDisk {
  return {
    id: 'hd0',
    path: join(dir, 'web.qcow2'),
    format: 'qcow2',
    writable: true,
    virtualSizeBytes: 1 << 30,
    snapshotModes: ['internal', 'external'],
  };
}

function overlay(): string {
  return join(dir, 'web.cairn-c1.qcow2');
}

/** A QEMU that creates the overlay, and then fails the transaction as given. */
function failingWith(code: ErrorCode): FakeMonitor {
  return new FakeMonitor((command) => {
    if (command !== 'transaction') return [];
    writeFileSync(overlay(), '');
    throw new CheckpointError(code, `${code} it is`);
  });
}

function disksOf(monitor: FakeMonitor): DiskDrivers {
  return new DiskDrivers({ cwd: '/', images: monitorImages(monitor), overlays: monitorOverlays(monitor) });
}

describe('a disk snapshot that fails', () => {
  it('leaves no overlay behind when QEMU has refused it', async () => {
    const refused = disksOf(failingWith('QMP_COMMAND')).snapshot('c1', [disk()], 'external');
    await expect(refused).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
    expect(existsSync(overlay())).toBe(false);
  });

  it.each<[ErrorCode, ErrorCode]>([
    ['QMP_TIMEOUT', 'DISK_SNAPSHOT_FAILED'],
    ['QMP_PROTOCOL', 'DISK_SNAPSHOT_FAILED'],
    ['VM_GONE', 'VM_GONE'],
  ])('keeps the overlay that the VM may write to after %s, and names it', async (code, reported) => {
    const unanswered = disksOf(failingWith(code)).snapshot('c1', [disk()], 'external');
    await expect(unanswered).rejects.toMatchObject({
      code: reported,
      detail: { possiblyPresent: [`overlay ${overlay()}`] },
    });
    expect(existsSync(overlay())).toBe(true);
  });

  it.each(['internal', 'external'])('without an answer names what to look for (%s)', async (mode) => {
    const what = mode === 'internal' ? `snapshot cairn-c1 in ${disk().path}` : `overlay ${overlay()}`;
    await expect(disksOf(failingWith('QMP_TIMEOUT')).snapshot('c1', [disk()], mode)).rejects.toThrow(what);
  });
});
