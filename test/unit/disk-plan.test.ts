import { describe, expect, it } from '@jest/globals';

import { DISK_DRIVERS } from '../../adapters/disks/disk-drivers.js';
import { INTERNAL_LIMIT_BYTES } from '../../adapters/disks/qcow2/internal-driver.js';
import { planDisks, type DiskOptions } from '../../src/disks/disk-plan.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

function disk(id: string, snapshotModes: VmDisk['snapshotModes'], virtualSizeBytes = 1 << 30): VmDisk {
  return { id, path: `/dev/${id}`, format: 'x', writable: true, virtualSizeBytes, snapshotModes };
}

const IMAGE = disk('image', ['internal', 'external']);
const VOLUME = disk('volume', ['lvm'], 2 * INTERNAL_LIMIT_BYTES);
const CEPH = disk('ceph', ['rbd'], 2 * INTERNAL_LIMIT_BYTES);
const RAW = disk('raw', []);
const PLAIN: DiskOptions = { memoryOnly: false, mode: 'auto', hookCoversDisks: false };

function plan(
  disks: readonly VmDisk[],
  options: Partial<DiskOptions> = {},
): Record<string, readonly string[]> {
  const groups = planDisks(disks, DISK_DRIVERS, { ...PLAIN, ...options });
  return Object.fromEntries(groups.map((group) => [group.driver, group.disks.map(({ id }) => id)]));
}

describe('the plan for disks', () => {
  it('takes each disk in the way that it allows', () => {
    expect(plan([IMAGE, VOLUME])).toEqual({ internal: ['image'], lvm: ['volume'] });
    expect(plan([IMAGE, VOLUME], { mode: 'external' })).toEqual({ external: ['image'], lvm: ['volume'] });
    expect(plan([VOLUME])).toEqual({ lvm: ['volume'] });
    expect(plan([IMAGE, VOLUME, CEPH])).toEqual({ internal: ['image'], lvm: ['volume'], rbd: ['ceph'] });
  });

  it('goes by the size of images alone', () => {
    const large = disk('large', ['internal', 'external'], INTERNAL_LIMIT_BYTES + 1);
    expect(plan([IMAGE, large, VOLUME])).toEqual({ external: ['image', 'large'], lvm: ['volume'] });
  });

  it('leaves volumes to a hook, unless told otherwise', () => {
    const hookCoversDisks = true;
    expect(plan([IMAGE, VOLUME, RAW], { hookCoversDisks })).toEqual({ internal: ['image'] });
    expect(plan([IMAGE, VOLUME, RAW], { hookCoversDisks, mode: 'lvm' })).toEqual({
      internal: ['image'],
      lvm: ['volume'],
    });
    expect(plan([VOLUME, CEPH, RAW], { hookCoversDisks, mode: 'rbd' })).toEqual({ rbd: ['ceph'] });
  });

  it('names the disks that nobody would snapshot, and why', () => {
    const broken = { ...RAW, whyNoSnapshot: 'lvm is not installed' };
    for (const mode of ['auto', 'internal', 'external', 'lvm'] as const) {
      expect(() => plan([IMAGE, broken], { mode })).toThrow(
        expect.objectContaining({
          code: 'DISK_NOT_COVERED',
          message: expect.stringContaining('lvm is not installed'),
          detail: { disks: ['raw'] },
        }),
      );
    }
  });

  it('is empty for memory alone, and without a writable disk', () => {
    expect(plan([IMAGE, RAW], { memoryOnly: true })).toEqual({});
    expect(plan([{ ...RAW, writable: false }])).toEqual({});
  });
});
