import { describe, expect, test } from '@jest/globals';

import { pathMove, withMovedPaths } from '../../adapters/kvm/restore/moved-paths.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import type { CheckpointSource } from '../../src/hypervisor/restore.js';
import type { JsonObject } from '../../src/types.js';

describe('a folder that has moved', () => {
  test('takes along what lies in it, and nothing of a folder whose name begins like it', () => {
    const move = pathMove(['/srv/vms=/data']);
    expect(move('/srv/vms/web1/disk.qcow2')).toBe('/data/web1/disk.qcow2');
    expect(move('/srv/vms')).toBe('/data');
    expect(move('/srv/vms2/disk.qcow2')).toBe('/srv/vms2/disk.qcow2');
    expect(move('disk.qcow2')).toBe('disk.qcow2');
  });

  test('moves once, by the longest folder that is named', () => {
    const move = pathMove(['/a=/b', '/b=/c', '/a/deep=/elsewhere/']);
    expect(move('/a/x')).toBe('/b/x');
    expect(move('/a/deep/x')).toBe('/elsewhere/x');
    expect(move('/a/../b/x')).toBe('/c/x');
  });

  test('may have an equals sign in its name', () => {
    expect(pathMove(['/a=b/c=/d'])('/a=b/c/x')).toBe('/d/x');
  });

  test.each(['/a', 'a=/b', '/a=b', '=', '/a=/b\0'])('is refused as %j', (text) => {
    expect(() => pathMove([text])).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});

describe('a machine below a folder that has moved', () => {
  test.each([
    [
      ['-drive', 'file=/srv/a,,b/d.qcow2,if=virtio'],
      ['-drive', 'file=/data/a,,b/d.qcow2,if=virtio'],
    ],
    [
      ['-hda', '/srv/a,b.img'],
      ['-hda', '/data/a,b.img'],
    ],
    [
      ['-qmp', 'unix:/srv/q.sock,server=on'],
      ['-qmp', 'unix:/data/q.sock,server=on'],
    ],
    [
      ['-serial', 'mon:unix:/srv/s,server=on'],
      ['-serial', 'mon:unix:/data/s,server=on'],
    ],
    [
      ['-drive', 'file=fat:rw:/srv/share'],
      ['-drive', 'file=fat:rw:/data/share'],
    ],
    [
      ['-blockdev', '{"driver":"qcow2","file":{"driver":"file","filename":"/srv/x"}}'],
      ['-blockdev', '{"driver":"qcow2","file":{"driver":"file","filename":"/data/x"}}'],
    ],
    [
      ['-object', 'memory-backend-file,id=m,mem-path=/srv/ram,share=on,size=1G'],
      ['-object', 'memory-backend-file,id=m,mem-path=/data/ram,share=on,size=1G'],
    ],
    // For the guest.
    [
      ['-append', 'root=/srv/x quiet'],
      ['-append', 'root=/srv/x quiet'],
    ],
    [
      ['-name', '/srv/x'],
      ['-name', '/srv/x'],
    ],
  ])('has %j as %j', (before, after) => {
    const { machine } = withMovedPaths(recorded({ argv: ['qemu', ...before], program: '/srv/qemu' }), [
      '/srv=/data',
    ]);
    expect(machine.argv).toEqual(['qemu', ...after]);
  });

  test('is found where it was started, with its program, its monitor and its disks', () => {
    const source = recorded({
      cwd: '/srv/vm',
      program: '/srv/bin/qemu',
      qmpPath: '/srv/vm/q.sock',
      presentDisks: [{ device: 'd', path: '/srv/vm/d.qcow2', format: 'qcow2', readOnly: false }],
    });
    const { machine } = withMovedPaths(source, ['/srv=/data']);
    expect(machine).toMatchObject({
      cwd: '/data/vm',
      program: '/data/bin/qemu',
      qmpPath: '/data/vm/q.sock',
      presentDisks: [{ path: '/data/vm/d.qcow2' }],
    });
  });

  test('keeps relative paths that go with its folder, and has those of others as absolute ones', () => {
    const argv = ['qemu', '-hda', 'vms/d.qcow2', '-kernel', 'linux'];
    const inside = withMovedPaths(recorded({ argv, cwd: '/srv' }), ['/srv=/data']);
    expect(inside.machine).toMatchObject({ argv, cwd: '/data' });
    const beside = withMovedPaths(recorded({ argv, cwd: '/srv' }), ['/srv/vms=/data']);
    expect(beside.machine.argv).toEqual(['qemu', '-hda', '/data/d.qcow2', '-kernel', 'linux']);
  });

  test('has the snapshots of its disks there, with the layers below', () => {
    const frozen = [{ path: '/srv/base.qcow2', sizeBytes: 7, mtimeNs: '1' }];
    const disks: DiskSnapshot[] = [
      {
        diskId: 'a',
        path: '/srv/a.qcow2',
        driver: 'internal',
        data: { snapshotName: 's', overlayPath: '' },
      },
      {
        diskId: 'b',
        path: '/srv/b.qcow2',
        driver: 'external',
        data: { snapshotName: '', overlayPath: '/srv/b.1.qcow2', frozen },
      },
      {
        diskId: 'c',
        path: '/srv/c.raw',
        driver: 'reflink',
        data: { imagePath: '/srv/c.raw', clonePath: '/srv/c.raw.cairn-1', format: 'raw', frozen },
      },
    ];
    const { disks: moved } = withMovedPaths({ ...recorded({}), disks }, ['/srv=/data']);
    expect(moved.map(({ path }) => path)).toEqual(['/data/a.qcow2', '/data/b.qcow2', '/data/c.raw']);
    expect(moved[1]!.data).toEqual({
      snapshotName: '',
      overlayPath: '/data/b.1.qcow2',
      frozen: [{ ...frozen[0]!, path: '/data/base.qcow2' }],
    });
    expect(moved[2]!.data).toMatchObject({
      imagePath: '/data/c.raw',
      clonePath: '/data/c.raw.cairn-1',
      frozen: [{ path: '/data/base.qcow2' }],
    });
  });

  test('is refused when nothing of it lies in that folder', () => {
    expect(() => withMovedPaths(recorded({}), ['/nowhere=/data'])).toThrow(
      expect.objectContaining({ code: 'USAGE', message: expect.stringContaining('/nowhere=/data') }),
    );
  });
});

function recorded(machine: JsonObject): CheckpointSource {
  return {
    checkpointId: '0123456789abcdef',
    hypervisor: 'kvm',
    machine: { argv: ['qemu', '-hda', '/srv/d.qcow2'], cwd: '/', program: '/usr/bin/qemu', ...machine },
    machineType: 'pc-i440fx-7.2',
    layout: { regions: [], pageSpan: 0, sizeBytes: 0 },
    disks: [],
    deviceState: () => Promise.reject(new Error('not asked for')),
    pages: () => {
      throw new Error('not asked for');
    },
    pagesAsStored: () => {
      throw new Error('not asked for');
    },
  };
}
