import { describe, expect, it } from '@jest/globals';

import { attachKvm, socketPathOf } from '../../adapters/kvm/attach.js';
import { disksOf } from '../../adapters/qemu/block-devices.js';
import { hazardsOf, type VmInventory } from '../../adapters/kvm/inspect/hazards.js';
import { backingOf, mappingsOf, parseMapping } from '../../adapters/kvm/memory/process-maps.js';
import { parseRamBlockTable } from '../../adapters/kvm/memory/ram-block-table.js';
import { refusedState, runStateOf } from '../../adapters/kvm/run/run-states.js';
import { FakeQmpServer } from '../support/fake-qmp-server.js';

describe('the table of RAM blocks', () => {
  it('is read as QEMU 7.2 prints it', () => {
    const rows = parseRamBlockTable(
      [
        '              Block Name    PSize              Offset               Used              Total',
        '                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000',
        '    /rom@etc/acpi/tables    4 KiB  0x0000000011100000 0x0000000000020000 0x0000000000200000',
        '',
      ].join('\r\n'),
    );
    expect(rows).toEqual([
      {
        name: 'pc.ram',
        backingPageBytes: 4096,
        offset: 0,
        usedBytes: 2 ** 28,
        maxBytes: 2 ** 28,
        host: undefined,
      },
      {
        name: '/rom@etc/acpi/tables',
        backingPageBytes: 4096,
        offset: 0x11100000,
        usedBytes: 0x20000,
        maxBytes: 0x200000,
        host: undefined,
      },
    ]);
  });

  it('is read as QEMU 10.0 prints it, with host addresses', () => {
    const rows = parseRamBlockTable(
      [
        '              Block Name    PSize              Offset               Used              Total                HVA  RO',
        '                     mem    2 MiB  0x0000000000000000 0x0000000100000000 0x0000000100000000 0x00007f6907e00000  rw',
        '                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000 0x00007f6965e00000  ro',
      ].join('\r\n'),
    );
    expect(rows.map(({ name, host }) => [name, host])).toEqual([
      ['mem', 0x7f6907e00000],
      ['pc.bios', 0x7f6965e00000],
    ]);
    expect(rows[0]).toMatchObject({ backingPageBytes: 2 << 20, usedBytes: 2 ** 32 });
  });

  it.each([
    ['is empty', 'Block Name PSize Offset Used Total\r\n'],
    ['has lines of another form', 'Block Name PSize Offset Used Total\r\n pc.ram lots\r\n'],
    ['names a block twice', ['head', ...Array<string>(2).fill('  a    4 KiB  0x0 0x1000 0x1000')].join('\n')],
  ])('is refused when it %s', (_, text) => {
    expect(() => parseRamBlockTable(text)).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED' }));
  });
});

describe('a memory map', () => {
  const maps = [
    '7f0000000000-7f0000200000 rw-p 00000000 00:00 0 ',
    '7f0000200000-7f0000400000 rw-p 00000000 00:00 0 ',
    '7f0000400000-7f0000401000 ---p 00000000 00:00 0 ',
    '7f1000000000-7f1010000000 rw-s 00000000 00:01 1027                       /memfd:memory-backend-memfd (deleted)',
    '7f2000000000-7f2010000000 rw-p 00000000 fe:00 4711                       /tmp/my file',
    '7f3000000000-7f3010000000 rw-s 00000000 00:0f 99                         /anon_hugepage (deleted)',
  ].flatMap((line) => parseMapping(line) ?? []);

  it('says which mappings hold a stretch, across neighbours but not across gaps or unreadable parts', () => {
    expect(mappingsOf(maps, 0x7f0000000000, 0x7f0000400000)).toHaveLength(2);
    expect(mappingsOf(maps, 0x7f0000100000, 0x7f0000101000)).toHaveLength(1);
    expect(mappingsOf(maps, 0x7f0000000000, 0x7f0000401000)).toBeUndefined();
    expect(mappingsOf(maps, 0x7effffffff00, 0x7f0000001000)).toBeUndefined();
  });

  it('tells what lies behind memory', () => {
    expect(maps.map((mapping) => backingOf([mapping]))).toEqual([
      'anonymous',
      'anonymous',
      'anonymous',
      'shared-memory',
      'file',
      'hugetlb',
    ]);
    expect(maps[4]).toMatchObject({ name: '/tmp/my file', inode: 4711, shared: false });
  });
});

describe('hazards', () => {
  const plain: VmInventory = {
    deviceTypes: ['virtio-net-pci', 'virtio-balloon-pci'],
    commandLine: 'qemu-system-x86_64 -name vhost-users-club -netdev user,id=n',
    openFiles: ['/dev/kvm', 'anon_inode:kvm-vm'],
    directFile: undefined,
    blocks: [
      {
        id: 'pc.ram',
        sizeBytes: 1 << 20,
        host: 4096,
        backing: 'anonymous',
        backingPageBytes: 4096,
        file: undefined,
      },
    ],
    sharedWith: [],
    status: 'running',
    migration: 'completed',
    blockers: [],
    bitmaps: [],
  };
  const shared = { ...plain.blocks[0]!, backing: 'shared-memory' as const };

  it('are none for an ordinary VM', () => {
    expect(hazardsOf(plain)).toEqual([]);
  });

  it.each<[string, string, Partial<VmInventory>]>([
    ['VFIO_DEVICE', 'refuse', { deviceTypes: ['vfio-pci'] }],
    ['VFIO_DEVICE', 'refuse', { openFiles: ['/dev/vfio/12'] }],
    ['MEMORY_HOTPLUG', 'refuse', { deviceTypes: ['virtio-mem-pci'] }],
    ['MIGRATION_ACTIVE', 'refuse', { migration: 'active' }],
    ['VM_STATE', 'note', { status: 'io-error' }],
    ['VHOST_USER', 'compare', { deviceTypes: ['vhost-user-fs-pci'] }],
    ['VHOST_USER', 'compare', { commandLine: 'qemu -netdev vhost-user,chardev=c,id=n' }],
    ['VHOST_USER', 'compare', { commandLine: 'qemu -netdev type=vhost-user,chardev=c' }],
    ['VHOST_KERNEL', 'compare', { openFiles: ['/dev/vhost-net'] }],
    [
      'SHARED_MEMORY',
      'compare',
      { blocks: [shared], deviceTypes: [], sharedWith: [{ block: shared, pid: 7 }] },
    ],
    ['BALLOON_ON_FILE', 'compare', { blocks: [shared] }],
    ['MIGRATION_BLOCKED', 'refuse', { blockers: ['because'] }],
    ['DIRTY_BITMAPS', 'note', { bitmaps: ['backup.0 of /srv/a.qcow2'] }],
    [
      'HUGE_PAGES',
      'note',
      { blocks: [{ ...shared, backing: 'hugetlb', backingPageBytes: 2 << 20 }], deviceTypes: [] },
    ],
  ])('%s: %s', (code, effect, change) => {
    expect(hazardsOf({ ...plain, ...change })).toEqual([expect.objectContaining({ code, effect })]);
  });
});

describe('replies of QEMU', () => {
  it.each([
    ['running', 'running'],
    ['paused', 'paused'],
    ['prelaunch', 'paused'],
    ['inmigrate', 'other'],
    ['postmigrate', 'other'],
    ['internal-error', 'other'],
    ['guest-panicked', 'other'],
  ])('run state %s counts as %s', (status, state) => {
    expect(runStateOf({ status, running: status === 'running' })).toBe(state);
  });

  it.each(['running', 'paused', 'prelaunch'])('nothing is said against run state %s', (status) => {
    expect(refusedState(status)).toBeUndefined();
  });

  it('another run state is said in words, one of a later QEMU by its name', () => {
    expect(refusedState('io-error')).toMatchObject({
      means: expect.stringContaining('disks reports errors'),
    });
    expect(refusedState('levitating')).toMatchObject({ means: 'is in state levitating' });
  });

  it('of query-block become disks; drives without a medium do not', () => {
    expect(
      disksOf([
        { device: 'ide1-cd0', type: 'unknown', removable: true },
        {
          device: '',
          inserted: {
            'node-name': 'n1',
            drv: 'raw',
            ro: true,
            file: '/x',
            image: { filename: '/x', 'virtual-size': 512 },
          },
        },
      ]),
    ).toEqual([
      expect.objectContaining({
        id: 'n1',
        path: '/x',
        format: 'raw',
        writable: false,
        virtualSizeBytes: 512,
      }),
    ]);
  });
});

describe('attaching', () => {
  it('takes an address apart', () => {
    expect(socketPathOf('qmp:/run/x.sock')).toBe('/run/x.sock');
    for (const address of ['qmp:', 'xen:x', '/run/x.sock']) {
      expect(() => socketPathOf(address)).toThrow(/not the address/);
    }
  });

  it('refuses a listener that is not a QEMU, naming it', async () => {
    const fake = await FakeQmpServer.start();
    try {
      await expect(attachKvm(`qmp:${fake.path}`, { runtimeDir: '/nonexistent' })).rejects.toMatchObject({
        code: 'VM_UNSUPPORTED',
        detail: { pid: process.pid },
      });
    } finally {
      await fake.stop();
    }
  });
});
