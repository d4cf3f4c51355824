import { describe, expect, it } from '@jest/globals';

import { disksOfStoppedQemu } from '../../adapters/disks/disk-drivers.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import type { Manifest } from '../../src/format/manifest.js';
import { refuseRollbackOfNeeded, type RollbackRequest } from '../../src/disks/rollback-check.js';

const REQUEST: RollbackRequest = { keepDisks: false };

function manifest(seq: number, ...disks: DiskSnapshot[]): Manifest {
  // Only what the check reads.
  return {
    id: `${seq}`.padStart(16, '0'),
    seq,
    chain: 'web',
    machine: { cwd: '/srv' },
    disks,
  } as unknown as Manifest;
}

function snapshot(mode: 'internal' | 'external', path: string, below: readonly string[] = []): DiskSnapshot {
  const frozen = [path, ...below].map((layer) => ({ path: layer, sizeBytes: 1, mtimeNs: '1' }));
  const data = { snapshotName: '', overlayPath: '', ...(mode === 'external' ? { frozen } : {}) };
  return { diskId: 'hd0', path, driver: mode, data };
}

function check(restored: Manifest, all: readonly Manifest[], request = REQUEST): Promise<void> {
  const repository = { checkpoints: () => Promise.resolve({ manifests: all, damaged: [] }) };
  return refuseRollbackOfNeeded(repository, restored, request, ({ machine }) => disksOfStoppedQemu(machine));
}

describe('rolling an image back', () => {
  const old = manifest(1, snapshot('internal', 'web.qcow2'));

  it.each([
    ['froze', manifest(2, snapshot('external', '/srv/web.qcow2'))],
    ['stands on', manifest(2, snapshot('external', '/srv/web.cairn-1.qcow2', ['/srv/web.qcow2']))],
  ])('is refused when a later checkpoint %s it', async (_, later) => {
    await expect(check(old, [old, later])).rejects.toMatchObject({
      code: 'DISK_CHANGED',
      detail: { path: '/srv/web.qcow2', checkpoint: later.id },
    });
  });

  it.each([
    ['only has a snapshot in it as well', manifest(2, snapshot('internal', 'web.qcow2'))],
    ['froze another image', manifest(2, snapshot('external', '/srv/other.qcow2'))],
  ])('is right when a later checkpoint %s', async (_, later) => {
    await check(old, [old, later]);
  });

  it('is right for an image that an overlay of an earlier checkpoint is', async () => {
    const first = manifest(1, snapshot('external', '/srv/web.qcow2'));
    const second = manifest(2, snapshot('internal', '/srv/web.cairn-1.qcow2'));
    await check(second, [first, second]);
  });

  it('does not happen when the restored VM has other disks', async () => {
    const later = manifest(2, snapshot('external', '/srv/web.qcow2'));
    await check(old, [old, later], { ...REQUEST, hasOtherDisks: true });
  });

  it('does not happen when the disks are kept', async () => {
    const later = manifest(2, snapshot('external', '/srv/web.qcow2'));
    await check(old, [old, later], { ...REQUEST, keepDisks: true });
  });
});
