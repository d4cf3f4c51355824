/** With what QEMU 7.2 and 10.0 answer. */

import { describe, expect, it, test } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { applyLimits, isDiskLimits, limitsOf } from '../../adapters/kvm/inspect/disk-limits.js';
import { writtenChardevs } from '../../adapters/kvm/inspect/present-chardevs.js';
import { changedNetwork, netdevsIn } from '../../adapters/kvm/inspect/present-network.js';
import { applySettings, readPresentObjects } from '../../adapters/kvm/inspect/present-objects.js';
import type { Monitor } from '../../adapters/qemu/monitor.js';
import { CheckpointError } from '../../src/errors.js';
import type { Json, JsonObject } from '../../src/types.js';

const written = (...argv: string[]): unknown => writtenChardevs(parseCommandLine(argv));

describe('chardevs of a command line', () => {
  test.each<[readonly string[], unknown]>([
    [['-chardev', 'null,id=a'], { label: 'a', kinds: ['null'] }],
    [['-chardev', 'tty,id=a,path=/dev/ttyS0'], { label: 'a', kinds: ['serial'] }],
    [['-chardev', 'memory,id=a'], { label: 'a', kinds: ['ringbuf'] }],
    [['-chardev', 'file,id=a,path=/a,,b'], { label: 'a', kinds: ['file'], file: '/a,b' }],
    [
      ['-chardev', 'socket,id=a,path=/a,server=on'],
      { label: 'a', kinds: ['socket'], socket: { type: 'unix', path: '/a' } },
    ],
    [
      ['-chardev', 'socket,id=a,host=h,port=5'],
      { label: 'a', kinds: ['socket'], socket: { type: 'inet', port: '5', host: 'h' } },
    ],
    [
      ['-chardev', 'socket,id=a,host=h,port=5,server=on'],
      { label: 'a', kinds: ['socket'], socket: { type: 'inet', port: '5' } },
    ],
    [
      ['-chardev', 'socket,id=a,host=h,port=5,to=9,server'],
      { label: 'a', kinds: ['socket'], socket: { type: 'inet' } },
    ],
    [['-chardev', 'socket,id=a,fd=7'], { label: 'a', kinds: ['socket'] }],
    [['-serial', 'file:a,b'], { label: 'serial0', kinds: ['file'], file: 'a,b' }],
    [
      ['-serial', 'unix:/a,server,nowait'],
      { label: 'serial0', kinds: ['socket'], socket: { type: 'unix', path: '/a' } },
    ],
    [
      ['-serial', 'telnet:localhost:7,server=on'],
      { label: 'serial0', kinds: ['socket'], socket: { type: 'inet', port: '7' } },
    ],
    [['-serial', 'vc:80Cx24C'], { label: 'serial0', kinds: ['vc', 'spiceport'] }],
    [['-serial', 'none', '-serial', 'null'], { label: 'serial1', kinds: ['null'] }],
  ])('%j are %j', (argv, expected) => {
    expect(written(...argv)).toContainEqual(expected);
  });

  test.each<[readonly string[]]>([
    [['-serial', 'mon:stdio']],
    [['-serial', 'none']],
    [['-chardev', 'null,id=a,mux=on', '-serial', 'chardev:a']],
    [['-chardev', 'null,id=serial0', '-set', 'chardev.serial0.logfile=/x']],
    [['-readconfig', 'machine.cfg', '-monitor', 'stdio', '-parallel', 'null']],
  ])('%j leave nothing to compare', (argv) => {
    expect(written(...argv)).toEqual([]);
  });

  it('are those of the machine where none is given', () => {
    expect(written('-m', '32')).toMatchObject([{ label: 'serial0', optional: true }]);
  });
});

const INFO = [
  'hub 0',
  ' \\ hub0port1: #net274: index=0,type=user,net=10.0.2.0,restrict=off',
  ' \\ hub0port0: ne2k_pci.0: index=0,type=nic,model=ne2k_pci,macaddr=52:54:00:12:34:57',
  'hub 3',
  ' \\ hp',
  'unused: index=0,type=user,net=10.0.2.0,restrict=off',
  'rtl8139.0: index=0,type=nic,model=rtl8139,macaddr=52:54:00:12:34:56',
  ' \\ #net040: index=0,type=user,net=10.0.2.0,restrict=off',
  'nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:58',
  ' \\ n0: index=0,type=user,net=10.0.2.0,restrict=off',
  'bare: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:59',
  '',
].join('\r\n');

describe('netdevs', () => {
  it('are told with a card and without one', () => {
    const { connected, loose } = netdevsIn(INFO);
    expect([...connected]).toEqual([
      ['#net040', 'rtl8139.0'],
      ['n0', 'nic0'],
    ]);
    expect([...loose]).toEqual(['unused']);
  });

  test.each<[string, string, readonly string[]]>([
    ['is there', "Duplicate ID 'n0'", []],
    [
      'was deleted',
      'exactly one of listen=, connect=, mcast= or udp= is required',
      ['the netdev n0 of nic0 was deleted'],
    ],
    ['is of a QEMU that answers otherwise', 'out of the question', []],
  ])('below a card: one that %s', async (_what, desc, expected) => {
    const asked: (Json | undefined)[] = [];
    const monitor = answering((command, args) => {
      if (command === 'human-monitor-command') return INFO;
      asked.push(args.id);
      throw new CheckpointError('QMP_COMMAND', desc);
    });
    expect(await changedNetwork(monitor)).toEqual(expected);
    expect(asked).toEqual(['n0']);
  });
});

/** Of `query-block`, both versions. */
const INSERTED: JsonObject = {
  ...{ iops_rd: 0, iops_max_length: 3, iops_wr: 0, group: 'd0', iops_size: 4096, iops: 7, bps_wr: 0 },
  ...{ bps: 0, bps_rd: 1_000_000, iops_max: 70, drv: 'qcow2', ro: false },
};
const LIMITS = { bps_rd: 1_000_000, iops: 7, iops_max: 70, iops_max_length: 3, iops_size: 4096, group: 'd0' };

describe('limits of a disk', () => {
  it('are what QEMU says, without what is no limit', () => {
    expect(limitsOf(INSERTED)).toEqual(LIMITS);
    expect(limitsOf({ bps: 0, iops: 0 })).toEqual({});
  });

  it('are set where they differ, and taken away', async () => {
    const sent: JsonObject[] = [];
    const monitor = answering((_command, args) => {
      sent.push(args);
      return {};
    });
    const disk = (device: string, limits?: Record<string, number | string>) => ({
      ...{ device, drive: device.startsWith('/') ? '' : device, path: '/d' },
      ...(limits === undefined ? {} : { limits }),
    });
    await applyLimits(
      monitor,
      [disk('/a', LIMITS), disk('b', {}), disk('same', LIMITS), disk('old')],
      [disk('/a', {}), disk('b', { iops: 1, group: 'b' }), disk('same', LIMITS), disk('old', { iops: 3 })],
    );
    const none = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };
    expect(sent).toEqual([
      { ...none, ...LIMITS, id: '/a' },
      { ...none, device: 'b' },
    ]);
  });

  it.each<[Json, boolean]>([
    [LIMITS, true],
    [{}, true],
    [{ iops: -1 }, false],
    [{ id: 'other' }, false],
    [{ iops: 'many' }, false],
    [[], false],
  ])('%j in a manifest are taken: %s', (limits, isTaken) => {
    expect(isDiskLimits(limits)).toBe(isTaken);
  });
});

describe('settings of objects', () => {
  it('are set on objects that are there and of that type, and no property but those', async () => {
    const sent: JsonObject[] = [];
    const monitor = answering((command, args) => {
      if (command === 'qom-list') return [{ name: 'io0', type: 'child<iothread>' }];
      if (command === 'qom-get') return args.property === 'poll-grow' ? 4 : 32_768;
      sent.push(args);
      return {};
    });
    const settings = { 'poll-max-ns': 7, 'poll-grow': 4, other: 1 };
    await applySettings(monitor, [
      { id: 'io0', type: 'iothread', settings },
      { id: 'io0', type: 'throttle-group', settings: { limits: { 'iops-total': 1 } } },
      { id: 'io9', type: 'iothread', settings },
    ]);
    // The second time it still reads what it read before.
    expect(new Set(sent.map((each) => JSON.stringify(each)))).toEqual(
      new Set([JSON.stringify({ path: '/objects/io0', property: 'poll-max-ns', value: 7 })]),
    );
  });

  it('of manifests are read with care', () => {
    expect(readPresentObjects(undefined)).toEqual([]);
    const fine = [{ id: 'g', type: 'throttle-group', settings: { limits: { 'iops-total': 5 } } }];
    expect(readPresentObjects(fine)).toEqual(fine);
    for (const bad of [{}, [{ id: 'g' }], [{ id: 'g', type: 't', settings: { limits: 'x' } }], [null]])
      expect(() => readPresentObjects(bad)).toThrow(expect.objectContaining({ code: 'RESTORE_FAILED' }));
  });
});

function answering(answer: (command: string, args: JsonObject) => Json): Monitor {
  return {
    execute: async (command, args = {}) => Promise.resolve().then(() => answer(command, args)),
    onEvent: () => () => undefined,
    close: () => Promise.resolve(),
  };
}
