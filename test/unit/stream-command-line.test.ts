import { describe, expect, it } from '@jest/globals';

import { restoredCommandLine } from '../../adapters/kvm/restore/argv.js';
import {
  formatCommandLine,
  parseCommandLine,
  valueOf,
  withValueOf,
} from '../../adapters/disks/qcow2/command-line.js';
import type { JsonObject } from '../../src/types.js';
import { recordedMachine, type RecordedMachine } from '../../adapters/kvm/restore/machine.js';

const TYPE = 'pc-i440fx-7.2';
const QMP = 'unix:/run/web1.qmp,server=on,wait=off';

function machine(args: string): RecordedMachine {
  return recordedMachine({
    argv: ['qemu-system-x86_64', ...args.split(' ').filter((word) => word !== '')],
    cwd: '/srv',
    program: '/usr/bin/qemu-system-x86_64',
    env: {},
    qemuVersion: '7.2.22',
    machineType: TYPE,
    qmpPath: '/run/web1.qmp',
  });
}

interface Edits {
  readonly set?: readonly string[];
  readonly drop?: readonly string[];
  readonly socketPath?: string;
  readonly paused?: boolean;
}

function restored(args: string, { set = [], drop = [], socketPath, paused = false }: Edits = {}): string {
  const { options } = restoredCommandLine(machine(args), {
    setArgs: set,
    dropArgs: drop,
    paused,
    ...(socketPath === undefined ? {} : { socketPath }),
  });
  return formatCommandLine(options).join(' ');
}

describe('the command line of a restored VM', () => {
  it.each<[string, string, Edits, string]>([
    [
      'waits for a stream',
      `-machine ${TYPE} -qmp ${QMP}`,
      {},
      `-machine ${TYPE} -qmp ${QMP} -incoming defer`,
    ],
    [
      'loses what brought the recorded VM its state',
      `-machine ${TYPE} -incoming tcp:0:4444 -S -loadvm before -daemonize -qmp ${QMP}`,
      {},
      `-machine ${TYPE} -qmp ${QMP} -incoming defer`,
    ],
    [
      'stays stopped when asked to',
      `-machine ${TYPE} -S -qmp ${QMP}`,
      { paused: true },
      `-machine ${TYPE} -qmp ${QMP} -S -incoming defer`,
    ],
    [
      'keeps flags of other versions of QEMU',
      `-machine ${TYPE} -async-teardown -qmp ${QMP} -from-next-year`,
      {},
      `-machine ${TYPE} -async-teardown -qmp ${QMP} -from-next-year -incoming defer`,
    ],
    ['pins an alias', `-M pc -qmp ${QMP}`, {}, `-M ${TYPE} -qmp ${QMP} -incoming defer`],
    [
      'keeps other machine options',
      `-machine pc,usb=off,accel=tcg -qmp ${QMP}`,
      {},
      `-machine ${TYPE},usb=off,accel=tcg -qmp ${QMP} -incoming defer`,
    ],
    [
      'pins a type that is spelled out',
      `-machine accel=tcg,type=pc -qmp ${QMP}`,
      {},
      `-machine accel=tcg,type=${TYPE} -qmp ${QMP} -incoming defer`,
    ],
    [
      'adds the type to options without one',
      `-machine accel=tcg -qmp ${QMP}`,
      {},
      `-machine ${TYPE},accel=tcg -qmp ${QMP} -incoming defer`,
    ],
    [
      'takes the last of several types',
      `-machine pc -machine q35 -machine smm=off -qmp ${QMP}`,
      {},
      `-machine pc -machine ${TYPE} -machine smm=off -qmp ${QMP} -incoming defer`,
    ],
    [
      'names the type of a machine by default',
      `-qmp ${QMP}`,
      {},
      `-machine ${TYPE} -qmp ${QMP} -incoming defer`,
    ],
    [
      'leaves a machine alone that the operator set',
      `-qmp ${QMP}`,
      { set: ['-machine=q35'] },
      `-qmp ${QMP} -machine q35 -incoming defer`,
    ],
    [
      'gets a value in place of the first of its kind',
      `-M pc -drive file=a -drive file=b -qmp ${QMP}`,
      { set: ['-drive=file=c'] },
      `-M ${TYPE} -drive file=c -drive file=b -qmp ${QMP} -incoming defer`,
    ],
    [
      'gets a value in place of the n-th of its kind',
      `-M pc -drive file=a -drive file=b -qmp ${QMP}`,
      { set: ['-drive#2=file=c', '-drive#3=file=d'] },
      `-M ${TYPE} -drive file=a -drive file=c -qmp ${QMP} -drive file=d -incoming defer`,
    ],
    [
      'gets options and flags that it did not have',
      `-M pc -qmp ${QMP}`,
      { set: ['-name=web2', '-snapshot', '--m=1G'] },
      `-M ${TYPE} -qmp ${QMP} -name web2 -snapshot -m 1G -incoming defer`,
    ],
    [
      'does not get a flag twice',
      `-M pc -snapshot -qmp ${QMP}`,
      { set: ['-snapshot'] },
      `-M ${TYPE} -snapshot -qmp ${QMP} -incoming defer`,
    ],
    [
      'loses what is dropped',
      `-M pc -vnc :1 -device e1000 -device VGA -drive a -drive b -vnc :2 -qmp ${QMP}`,
      { drop: ['-vnc', '-device=e1000', '-drive#2'] },
      `-M ${TYPE} -device VGA -drive a -qmp ${QMP} -incoming defer`,
    ],
    [
      'drops first and sets then',
      `-M pc -drive a -drive b -qmp ${QMP}`,
      { drop: ['-drive#1'], set: ['-drive=c'] },
      `-M ${TYPE} -drive c -qmp ${QMP} -incoming defer`,
    ],
    [
      'opens its monitor elsewhere',
      `-M pc -qmp ${QMP} -qmp unix:/run/second,server=on`,
      { socketPath: '/run/web2,x.qmp' },
      `-M ${TYPE} -qmp unix:/run/web2,,x.qmp,server=on,wait=off -qmp unix:/run/second,server=on -incoming defer`,
    ],
    [
      'opens its monitor elsewhere when that is a character device',
      '-M pc -chardev socket,id=mon0,path=/run/web1.qmp,server=on -mon chardev=mon0,mode=control',
      { socketPath: '/run/web2' },
      `-M ${TYPE} -chardev socket,id=mon0,path=/run/web2,server=on -mon chardev=mon0,mode=control -incoming defer`,
    ],
    [
      'prefers the monitor through which it was attached',
      `-M pc -qmp unix:/run/first,server=on -qmp ${QMP}`,
      { socketPath: '/run/web2' },
      `-M ${TYPE} -qmp unix:/run/first,server=on -qmp unix:/run/web2,server=on,wait=off -incoming defer`,
    ],
    [
      'gets a monitor when it had none on the command line',
      '-M pc -monitor unix:/run/hmp,server=on',
      {},
      `-M ${TYPE} -monitor unix:/run/hmp,server=on -qmp ${QMP} -incoming defer`,
    ],
    [
      'keeps a disk image that stands alone',
      `-M pc disk.img -qmp ${QMP}`,
      {},
      `-M ${TYPE} disk.img -qmp ${QMP} -incoming defer`,
    ],
  ])('%s', (_, args, edits, expected) => {
    expect(restored(args, edits)).toBe(expected);
  });

  it('finds a relative monitor socket below the folder of the recorded process', () => {
    const { qmpPath } = restoredCommandLine(machine('-qmp unix:web.qmp,server'), {
      setArgs: [],
      dropArgs: [],
      paused: false,
    });
    expect(qmpPath).toBe('/srv/web.qmp');
  });

  it.each([
    '-netdev tap,id=n,fd=27',
    '-netdev tap,id=n,ifname=t,vhostfds=3:4',
    '-chardev socket,id=m,fd=3,server=on',
    '-add-fd fd=3,set=2',
    '-blockdev {"driver":"file","filename":"/dev/fdset/3","node-name":"x"}',
  ])('is refused with descriptors that only the recorded process had: %s', (args) => {
    expect(() => restored(`${args} -qmp ${QMP}`)).toThrow(
      expect.objectContaining({
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining(args),
      }),
    );
  });

  it('is accepted when the operator replaces such an argument', () => {
    const args = `-M pc -netdev tap,id=n,fd=27 -qmp ${QMP}`;
    expect(restored(args, { set: ['-netdev=tap,id=n,ifname=tap3'] })).toContain(
      '-netdev tap,id=n,ifname=tap3',
    );
  });

  it.each<Edits>([{ drop: ['-vnc'] }, { set: ['-drive#2=x'] }, { set: ['web2'] }, { set: [''] }])(
    'is refused with an edit that fits nothing: %j',
    (edits) => {
      expect(() => restored(`-M pc -qmp ${QMP}`, edits)).toThrow(expect.objectContaining({ code: 'USAGE' }));
    },
  );
});

describe('a recorded machine', () => {
  it.each<JsonObject>([
    {},
    { argv: ['qemu'], cwd: '/', machineType: TYPE },
    { argv: ['qemu', 7], cwd: '/', program: '/q', machineType: TYPE },
    { argv: ['qemu', 'a\0b'], cwd: '/', program: '/q', machineType: TYPE },
  ])('is refused when it cannot start anything: %j', (recorded) => {
    expect(() => recordedMachine(recorded)).toThrow(expect.objectContaining({ code: 'RESTORE_FAILED' }));
  });

  it('brings no other variables than the library path', () => {
    const { env } = recordedMachine({
      argv: ['qemu'],
      cwd: '/',
      program: '/q',
      machineType: TYPE,
      env: { LD_LIBRARY_PATH: '/opt/lib', LD_PRELOAD: '/tmp/x.so' },
    });
    expect(env).toEqual({ LD_LIBRARY_PATH: '/opt/lib' });
  });
});

describe('a QEMU command line', () => {
  it('comes out as it went in', () => {
    const argv = [
      '-nodefaults',
      '-M',
      'q35,usb=on',
      '--no-reboot',
      '-drive',
      'file=a,,b,if=none',
      '-S',
      'disk.img',
      '-m',
      '1G',
    ];
    expect(formatCommandLine(parseCommandLine(argv))).toEqual(argv);
  });

  it('may have options that no table knows, with and without values', () => {
    const parsed = parseCommandLine(['-from-next-year', '-m', '1G', '-with-value', 'x', '-flag-at-the-end']);
    expect(parsed.map(({ name, value }) => [name, value])).toEqual([
      ['from-next-year', undefined],
      ['m', '1G'],
      ['with-value', 'x'],
      ['flag-at-the-end', undefined],
    ]);
  });

  it('has values that begin with a dash', () => {
    expect(parseCommandLine(['-append', '-x', '-name', '-y'])).toEqual([
      { name: 'append', spelling: '-append', value: '-x' },
      { name: 'name', spelling: '-name', value: '-y' },
    ]);
  });

  it('has doubled commas inside of values', () => {
    expect(valueOf('file=a,,b,if=none', 'file')).toBe('a,b');
    expect(withValueOf('file=a,,b,if=none', 'file', 'c,d')).toBe('file=c,,d,if=none');
  });
});
