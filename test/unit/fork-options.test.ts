/** What each child of a fork gets of its own, what all share, and which machines are not forked. */

import { describe, expect, it } from '@jest/globals';

import { formatCommandLine, parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { childOptions, templateBlocks } from '../../adapters/kvm/fork/child-options.js';
import { refuseMachine } from '../../adapters/kvm/fork/refusals.js';
import { withOwnMemory } from '../../adapters/kvm/memory/template-object.js';
import { restoredCommandLine } from '../../adapters/kvm/restore/argv.js';
import { intoFolder } from '../../adapters/kvm/restore/renamed.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';

const MIB = 1 << 20;
const layout = layOut([
  { id: 'pc.ram', sizeBytes: 128 * MIB },
  { id: 'vga.vram', sizeBytes: 16 * MIB },
]);

const child = (argv: readonly string[], taken = new Set<string>(), of = layout) => {
  const options = parseCommandLine(argv);
  return childOptions(options, templateBlocks(options, of), (id) => 3 + id.length, taken);
};

const TEMPLATE = (id: string): string =>
  `memory-backend-file,id=${id},size=${128 * MIB},mem-path=/proc/self/fd/${3 + id.length},share=off,prealloc=off,` +
  'x-use-canonical-path-for-ramblock-id=off';

describe('the memory of a child', () => {
  it('is the template, where the command line names none', () => {
    const { options } = child(['-machine', 'pc-i440fx-7.2', '-m', '128']);
    expect(formatCommandLine(options)).toEqual([
      ...['-object', TEMPLATE('pc.ram')],
      ...['-machine', 'pc-i440fx-7.2,memory-backend=pc.ram', '-m', '128'],
    ]);
  });

  it.each([
    'memory-backend-ram,id=mem,size=128M',
    '{"qom-type":"memory-backend-memfd","id":"mem","share":true}',
  ])('is the template instead of %s', (object) => {
    const of = layOut([{ id: 'mem', sizeBytes: 128 * MIB }]);
    const { options } = child(['-object', object, '-machine', 'q35,memory-backend=mem'], new Set(), of);
    expect(formatCommandLine(options)).toEqual([
      ...['-object', TEMPLATE('mem'), '-machine', 'q35,memory-backend=mem'],
    ]);
  });

  it('is refused where no argument is its main memory', () => {
    const other = layOut([{ id: 'microvm.ram', sizeBytes: 128 * MIB }]);
    expect(() => templateBlocks([], other)).toThrow(
      expect.objectContaining({
        code: 'FORK_REFUSED',
        detail: expect.objectContaining({ reason: 'MAIN_MEMORY' }),
      }),
    );
  });

  it('becomes its own when a checkpoint of it is restored', () => {
    const { options } = child(['-machine', 'q35', '-m', '128']);
    const [object] = formatCommandLine(withOwnMemory(options)).slice(1);
    expect(object).toBe(
      `memory-backend-ram,id=pc.ram,size=${128 * MIB},x-use-canonical-path-for-ramblock-id=off`,
    );
    const plain = parseCommandLine(['-object', 'memory-backend-file,id=m,mem-path=/dev/shm/m,size=1G']);
    expect(withOwnMemory(plain)).toEqual(plain);
  });
});

describe('the identity of a child', () => {
  it.each([
    ['-device', 'virtio-net-pci,netdev=n', /^virtio-net-pci,netdev=n,mac=(52:54:00(?::[0-9a-f]{2}){3})$/],
    ['-device', 'e1000,mac=52:54:00:12:34:56', /^e1000,mac=(52:54:00(?::[0-9a-f]{2}){3})$/],
    ['-device', '{"driver":"rtl8139"}', /^\{"driver":"rtl8139","mac":"([0-9a-f:]{17})"\}$/],
    ['-nic', 'user,model=e1000', /^user,model=e1000,mac=([0-9a-f:]{17})$/],
    ['-net', 'nic,model=e1000', /^nic,model=e1000,macaddr=([0-9a-f:]{17})$/],
  ])('%s %s has a MAC address of its own', (name, value, expected) => {
    const taken = new Set<string>();
    const children = Array.from({ length: 20 }, () => child(['-machine', 'pc', name, value], taken));
    for (const { options, macs } of children)
      expect(expected.exec(options.at(-1)!.value!)?.[1]).toBe(macs[0]);
    expect(taken.size).toBe(20);
  });

  it('and a generation id, where there is such a device', () => {
    const guid = '11111111-2222-3333-4444-555555555555';
    const { options, generationId } = child(['-machine', 'pc', '-device', `vmgenid,guid=${guid}`]);
    expect(options.at(-1)!.value).toBe(`vmgenid,guid=${generationId}`);
    expect(generationId).not.toBe(guid);
    expect(child(['-machine', 'pc']).generationId).toBe('');
  });

  it('leaves other devices as they are', () => {
    const argv = [
      '-machine',
      'pc,memory-backend=pc.ram',
      '-device',
      'virtio-blk-pci,drive=d',
      '-nic',
      'none',
    ];
    expect(formatCommandLine(child(argv).options).slice(4)).toEqual(argv.slice(2));
  });
});

describe('the folder of a child', () => {
  it('has all of its sockets and files, none twice', () => {
    const into = intoFolder('/forks/kid-0');
    expect(['/run/a/qmp.sock', '/run/b/qmp.sock', '/run/a/qmp.sock', 'log'].map(into)).toEqual([
      ...['/forks/kid-0/qmp.sock', '/forks/kid-0/2-qmp.sock', '/forks/kid-0/qmp.sock', '/forks/kid-0/log'],
    ]);
  });

  it('is where its monitor is', () => {
    const recorded = {
      ...{ argv: ['-name', 'web1', '-qmp', 'unix:/run/web1.qmp,server=on', '-pidfile', 'web1.pid'] },
      ...{
        cwd: '/srv',
        program: '/usr/bin/qemu',
        env: {},
        rights: undefined,
        qemuVersion: '',
        machineType: 'pc',
      },
      ...{ qmpPath: '/run/web1.qmp', presentDisks: undefined, presentObjects: [] },
    };
    const request = { newName: 'kid-0', ownFolder: '/forks/kid-0', paused: true };
    const { options, qmpPath } = restoredCommandLine(recorded, request);
    expect(qmpPath).toBe('/forks/kid-0/web1.qmp');
    expect(formatCommandLine(options)).toEqual(
      expect.arrayContaining([
        'kid-0',
        'unix:/forks/kid-0/web1.qmp,server=on',
        '/forks/kid-0/web1.pid',
        '-S',
      ]),
    );
  });
});

describe('a machine is not forked', () => {
  it.each([
    ['FILE_MEMORY', '-mem-path', '/dev/hugepages'],
    ['FILE_MEMORY', '-object', 'memory-backend-file,id=m,mem-path=/m,size=1G'],
    ['OTHER_MEMORY', '-object', 'memory-backend-epc,id=m,size=1G'],
    ['HUGE_PAGES', '-object', 'memory-backend-memfd,id=m,hugetlb=on,size=1G'],
    ['PREALLOCATED', '-mem-prealloc', undefined],
    ['PREALLOCATED', '-object', '{"qom-type":"memory-backend-ram","id":"m","prealloc":true}'],
    ['LOCKED_MEMORY', '-overcommit', 'mem-lock=on'],
    ['CONFIG_FILE', '-readconfig', 'vm.conf'],
    ['VHOST_USER', '-chardev', 'socket,id=vhost-user0,path=/run/v'],
    ['VHOST', '-netdev', 'tap,id=n,vhost=on'],
    ['DEVICE', '-device', 'vfio-pci,host=01:00.0'],
    ['DEVICE', '-device', 'virtio-mem-pci,memdev=m'],
    ['ACCELERATOR', '-accel', 'kvm'],
    ['ACCELERATOR', '-machine', 'pc,accel=kvm'],
    ['ACCELERATOR', '-enable-kvm', undefined],
  ])('%s: %s %s', (reason, name, value) => {
    const argv = value === undefined ? [name] : [name, value];
    expect(() => refuseMachine(parseCommandLine(argv))).toThrow(
      expect.objectContaining({ code: 'FORK_REFUSED', detail: expect.objectContaining({ reason }) }),
    );
  });

  it('but one under TCG with memory of its own is', () => {
    const argv = ['-accel', 'tcg', '-m', '128', '-object', 'memory-backend-memfd,id=m,share=on,size=1G'];
    expect(() => refuseMachine(parseCommandLine(argv))).not.toThrow();
  });
});
