import { describe, expect, it } from '@jest/globals';

import { layOut } from '../../src/hypervisor/memory-layout.js';
import { externalSnapshot } from '../../adapters/disks/qcow2/qcow2-records.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import { decodeManifest, encodeManifest, manifestKey, type Manifest } from '../../src/format/manifest.js';

const OLD: DiskSnapshot = {
  diskId: 'hd0',
  path: '/srv/web.qcow2',
  driver: 'external',
  data: { snapshotName: '', overlayPath: '/srv/web.cairn-1.qcow2' },
};
const LAYER = { path: '/srv/web.qcow2', sizeBytes: 196_616, mtimeNs: '1763911211123456789' };

function manifest(disk: DiskSnapshot): Manifest {
  return {
    id: '0123456789abcdef',
    seq: 1,
    chain: 'web',
    vmName: 'web',
    parentId: null,
    kind: 'base',
    time: '2026-11-23T00:00:00.000Z',
    hypervisor: 'kvm',
    identity: { hypervisor: 'kvm', name: 'web', uuid: '', machineType: 'pc', instance: '1:1' },
    machine: {},
    layout: layOut([{ id: 'pc.ram', sizeBytes: 4096 }]),
    runState: 'running',
    packs: [],
    segments: [],
    deviceState: null,
    disks: [disk],
    maxDepth: 0,
    storedBytes: 0,
    stats: {},
  };
}

const KEY = manifestKey(manifest(OLD));

function roundTrip(disk: DiskSnapshot): readonly DiskSnapshot[] {
  const written = manifest(disk);
  return decodeManifest(manifestKey(written), 'web', encodeManifest(written)).disks;
}

describe('the disks of a manifest', () => {
  it.each([
    ['as they were written before frozen layers were', OLD],
    ['with frozen layers', { ...OLD, data: { ...OLD.data, frozen: [LAYER] } }],
    ['with none that could be recorded', { ...OLD, data: { ...OLD.data, frozen: [] } }],
  ])('are read back %s', (_, disk) => {
    expect(roundTrip(disk)).toEqual([{ ...disk, recordedIn: KEY }]);
    const { frozen } = disk.data as { frozen?: unknown };
    expect(externalSnapshot(roundTrip(disk)[0]!).frozen).toEqual(frozen);
  });

  it.each([
    ['a relative path', { ...LAYER, path: 'web.qcow2' }],
    ['a size that is none', { ...LAYER, sizeBytes: -1 }],
    ['a time that is none', { ...LAYER, mtimeNs: '17e8' }],
  ])('are refused with %s', (_, layer) => {
    const [disk] = roundTrip({ ...OLD, data: { ...OLD.data, frozen: [layer] } });
    expect(() => externalSnapshot(disk!)).toThrow(
      expect.objectContaining({ code: 'REPO_DAMAGED', message: expect.stringContaining(KEY) }),
    );
  });
});
