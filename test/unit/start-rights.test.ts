import { execFileSync } from 'node:child_process';

import { describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { keptEnvironment, onlyKept } from '../../adapters/kvm/inspect/kept-environment.js';
import {
  rightsInStatus,
  rightsOf,
  type CapabilitySets,
  type ProcessRights,
} from '../../adapters/kvm/inspect/process-rights.js';
import { readRights, rightsRecord } from '../../adapters/kvm/inspect/rights-record.js';
import { loadedFiles } from '../../adapters/kvm/restore/program-files.js';
import { rightsArguments, withRights } from '../../adapters/kvm/restore/start-command.js';
import { planRights, refuseMoreRights } from '../../adapters/kvm/restore/start-rights.js';

const ALL = 0x1ff_ffff_ffffn;
const NONE: CapabilitySets = { inheritable: 0n, permitted: 0n, effective: 0n, bounding: ALL, ambient: 0n };

function rights(user: number, more: Partial<ProcessRights> = {}): ProcessRights {
  const ids = [user, user, user, user];
  const isRoot = user === 0;
  return {
    ...{ users: ids, groups: ids, moreGroups: [], noNewPrivileges: false, seccomp: 0, label: '', limits: [] },
    capabilities: isRoot ? { ...NONE, permitted: ALL, effective: ALL } : NONE,
    ...more,
  };
}

const ROOT = rights(0);
const plan = (
  recorded: ProcessRights | undefined,
  own = ROOT,
  argv: readonly string[] = [],
  asCaller = false,
) => planRights({ recorded, options: parseCommandLine(argv), asCaller }, own);

describe('as whom a restored QEMU starts', () => {
  it('as the caller when that is as whom it ran', () => {
    expect(plan(ROOT)).toEqual({ user: 0, change: undefined, atMost: ROOT, notes: [] });
    expect(plan(rights(1000), rights(1000))).toMatchObject({ user: 1000, change: undefined });
  });

  it('as the recorded user, by root, and no more than that', () => {
    const recorded = rights(64055, { groups: [108, 108, 108, 108], moreGroups: [36, 44] });
    const { user, change, atMost } = plan(recorded);
    expect(user).toBe(64055);
    expect(atMost).toBe(recorded);
    expect(rightsArguments(change!)).toEqual([
      ...['--ruid', '64055', '--euid', '64055', '--rgid', '108', '--egid', '108', '--groups', '36,44'],
      ...['--inh-caps', '-all', '--ambient-caps', '-all'],
      ...['--bounding-set', expect.stringMatching(/^-all,\+cap_0,\+cap_1,.*\+cap_40$/)],
    ]);
  });

  it('with ambient capabilities and no-new-privileges as recorded', () => {
    const raw = 1n << 13n;
    const recorded = rights(64055, {
      capabilities: { inheritable: raw, permitted: raw, effective: raw, bounding: raw, ambient: raw },
      noNewPrivileges: true,
    });
    expect(rightsArguments(plan(recorded).change!).slice(-7)).toEqual([
      ...['--inh-caps', '-all,+cap_13', '--ambient-caps', '-all,+cap_13', '--bounding-set', '-all,+cap_13'],
      '--no-new-privs',
    ]);
  });

  it('as root within the capabilities that it had as root', () => {
    const few = 0b1001n;
    const recorded = rights(0, { capabilities: { ...NONE, permitted: few, effective: few } });
    expect(plan(recorded).change?.ids?.capabilities.bounding).toBe(few);
  });

  it('not at all as another user by one who is not root', () => {
    expect(() => plan(rights(64055), rights(1000))).toThrow(
      expect.objectContaining({ code: 'RESTORE_RIGHTS', message: expect.stringContaining('user 64055') }),
    );
    expect(() => plan(ROOT, rights(1000))).toThrow(expect.objectContaining({ code: 'RESTORE_RIGHTS' }));
  });

  it('without a record as a caller who is not root, and not as root unless that is insisted on', () => {
    expect(plan(undefined, rights(1000))).toMatchObject({ user: 1000, change: undefined });
    expect(() => plan(undefined)).toThrow(
      expect.objectContaining({ code: 'RESTORE_RIGHTS', hint: expect.stringContaining('--as-root') }),
    );
    expect(plan(undefined, ROOT, [], true)).toMatchObject({ user: 0, atMost: undefined });
  });

  it('as the caller with all of its rights when that is insisted on, which is said', () => {
    const recorded = rights(64055, { label: 'libvirt-1 (enforce)', seccomp: 2 });
    expect(plan(recorded, ROOT, [], true)).toEqual({
      ...{ user: 0, change: undefined, atMost: undefined },
      notes: [
        'QEMU runs as user 0, and ran as user 64055',
        'QEMU is not confined as "libvirt-1 (enforce)" any more',
        'QEMU may run without the seccomp filter that it had',
      ],
    });
  });

  it.each([
    ['-runas', 'nobody'],
    ['-run-with', 'chroot=/srv/jail,user=nobody'],
  ])('as root for %s %s, when root had opened its monitor', (...argv) => {
    const opened = rights(65534, { openedMonitorAs: { user: 0, group: 7 } });
    const { user, change, atMost } = plan(opened, ROOT, argv);
    expect(user).toBe(0);
    expect(change?.ids).toMatchObject({ users: [0, 0, 0, 0], groups: [7, 7, 7, 7], moreGroups: [] });
    expect(atMost).toBe(opened);
    const said = rights(65534, { openedMonitorAs: { user: 65534, group: 65534 } });
    expect(() => plan(said, ROOT, argv)).toThrow(expect.objectContaining({ code: 'RESTORE_RIGHTS' }));
    expect(() => plan(rights(65534), ROOT, argv)).toThrow(/nothing shows that it was started by root/);
  });
});

describe('what held a QEMU back', () => {
  it.each(['libvirt-5c3f (enforce)', 'system_u:system_r:svirt_t:s0:c12,c34'])(
    'is not given away: the label %s',
    (label) => {
      expect(() => plan(rights(0, { label }))).toThrow(
        expect.objectContaining({ code: 'RESTORE_RIGHTS', message: expect.stringContaining(label) }),
      );
      expect(plan(rights(0, { label }), rights(0, { label }))).toMatchObject({ user: 0 });
    },
  );

  it.each(['unconfined', 'x (complain)', 'unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023'])(
    'is nothing: the label %s',
    (label) => expect(plan(rights(0, { label }))).toMatchObject({ user: 0 }),
  );

  it("is not given away: a manager's seccomp filter; QEMU's own comes with its command line", () => {
    const filtered = rights(0, { seccomp: 2 });
    expect(() => plan(filtered)).toThrow(expect.objectContaining({ code: 'RESTORE_RIGHTS' }));
    expect(() => plan(filtered, ROOT, ['-sandbox', 'off'])).toThrow(/seccomp/);
    expect(plan(filtered, ROOT, ['-sandbox', 'on,obsolete=deny'])).toMatchObject({ user: 0 });
    expect(plan(filtered, filtered)).toMatchObject({ user: 0 });
  });

  it('is said when it is a limit of a control group', () => {
    expect(plan(rights(0, { limits: ['memory.max 1073741824'] })).notes).toEqual([
      expect.stringContaining('memory.max 1073741824'),
    ]);
  });

  it('is held against the new QEMU: nothing may be added', () => {
    const recorded = rights(64055, { moreGroups: [36], noNewPrivileges: true, seccomp: 2 });
    expect(() => refuseMoreRights(recorded, recorded)).not.toThrow();
    expect(() => refuseMoreRights({ ...recorded, moreGroups: [] }, recorded)).not.toThrow();
    for (const more of [
      rights(0),
      { ...recorded, moreGroups: [0, 36] },
      { ...recorded, noNewPrivileges: false },
      { ...recorded, seccomp: 0 },
      { ...recorded, capabilities: { ...NONE, permitted: 1n } },
    ])
      expect(() => refuseMoreRights(more, recorded)).toThrow(
        expect.objectContaining({ code: 'RESTORE_RIGHTS' }),
      );
  });
});

describe('the record of rights', () => {
  it('is that of /proc, and comes out of JSON as it went in', async () => {
    const own = await rightsOf(process.pid);
    expect(own.users[0]).toBe(process.getuid?.());
    const record = rightsRecord({ ...own, openedMonitorAs: { user: 0, group: 5 } });
    expect(readRights(JSON.parse(JSON.stringify(record)) as never)).toEqual({
      ...own,
      openedMonitorAs: { user: 0, group: 5 },
    });
  });

  it('reads a status without supplementary groups', () => {
    const status = 'Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t \nCapBnd:\t000000000000000f\nSeccomp:\t2\n';
    expect(rightsInStatus(status)).toMatchObject({
      ...{ users: [1, 2, 3, 4], groups: [5, 6, 7, 8], moreGroups: [], seccomp: 2, noNewPrivileges: false },
      capabilities: { bounding: 15n, permitted: 0n },
    });
  });

  it.each([
    ['no object', 'root'],
    ['ids that are none', { ...rightsRecord(rights(1)), users: [0, 0, 0, -1] }],
    ['a command in place of a group', { ...rightsRecord(rights(1)), moreGroups: ['0 --reuid 0'] }],
    ['capabilities that are no number', { ...rightsRecord(rights(1)), capabilities: { bounding: 'all' } }],
  ])('counts as absent with %s', (_, record) => {
    expect(readRights(record as never)).toBeUndefined();
  });
});

describe('the environment of a restored QEMU', () => {
  it('has what decides which files are loaded, and no secrets', () => {
    const environ =
      'PATH=/usr/bin\0LC_ALL=C\0QEMU_MODULE_DIR=/opt/q\0LD_PRELOAD=/x.so\0LD_AUDIT=/y.so\0AWS_SECRET_KEY=1\0QEMU_PASSWORD=2\0';
    expect(keptEnvironment(environ)).toEqual({
      ...{ PATH: '/usr/bin', LC_ALL: 'C', QEMU_MODULE_DIR: '/opt/q' },
    });
    expect(
      onlyKept([
        ['PATH', 'a\0b'],
        ['HOME', 7],
        ['BASH_ENV', '/x'],
      ]),
    ).toEqual({});
  });

  it('is set last, when the rights are given up', async () => {
    const command = { program: '/opt/a=b/qemu', argv: ['-S'], env: { LD_LIBRARY_PATH: '/home/u/lib' } };
    const { program, argv, env } = await withRights(command, plan(rights(64055)).change);
    expect([program, env]).toEqual(['/usr/bin/setpriv', {}]);
    expect(argv.slice(argv.indexOf('--'))).toEqual([
      ...['--', '/usr/bin/env', '-i', 'LD_LIBRARY_PATH=/home/u/lib'],
      ...['/bin/sh', '-c', 'exec "$0" "$@"', '/opt/a=b/qemu', '-S'],
    ]);
    expect(await withRights(command, undefined)).toBe(command);
  });

  (process.getuid?.() === 0 ? it : it.skip)(
    'is what the program sees, with the rights that were set',
    async () => {
      const recorded = rights(65534, { moreGroups: [100], noNewPrivileges: true });
      const own = await rightsOf('self');
      const change = planRights({ recorded, options: [], asCaller: false }, own).change;
      const { program, argv, env } = await withRights(
        {
          program: '/bin/sh',
          argv: ['-c', 'cat /proc/self/status; env'],
          env: { PATH: '/usr/bin', LANG: 'C' },
        },
        change,
      );
      const output = execFileSync(program, argv, { env, encoding: 'utf8' });
      expect(output).toMatch(/^LANG=C$/m);
      expect(output).not.toMatch(/^HOME=/m);
      const seen = rightsInStatus(output);
      expect(seen).toMatchObject({ users: recorded.users, groups: recorded.groups, moreGroups: [100] });
      expect(seen).toMatchObject({ noNewPrivileges: true, capabilities: { permitted: 0n, ambient: 0n } });
      expect(() => refuseMoreRights({ ...recorded, ...seen }, recorded)).not.toThrow();
    },
  );
});

describe('the files that a QEMU loads', () => {
  const files = (argv: readonly string[], env: Record<string, string> = {}) =>
    loadedFiles({ program: '/usr/bin/qemu', options: parseCommandLine(argv), env, cwd: '/run/vm' });
  const paths = (argv: readonly string[], env: Record<string, string> = {}) =>
    files(argv, env)
      .slice(1)
      .map(({ path }) => path);

  it.each([
    [
      ['-kernel', '/boot/vmlinuz', '-initrd', 'initrd.gz', '-append', 'file=/x'],
      ['/boot/vmlinuz', '/run/vm/initrd.gz'],
    ],
    [
      ['-bios', 'bios.bin', '-dtb', '/d'],
      ['/run/vm/bios.bin', '/d'],
    ],
    [['-drive', 'if=pflash,file=/fw/code.fd,format=raw', '-drive', 'file=/disk.img'], ['/fw/code.fd']],
    [['-device', 'virtio-net-pci,romfile=/r,,1.rom', '-device', 'e1000,romfile='], ['/r,1.rom']],
    [
      ['-netdev', 'tap,id=n,script=/etc/up,downscript=no,helper=/h'],
      ['/etc/up', '/h'],
    ],
    [
      ['-plugin', '/p.so,arg=1', '-plugin', 'file=/q.so'],
      ['/p.so', '/q.so'],
    ],
    [
      ['-acpitable', 'sig=A,data=/no,file=/a:/b', '-smbios', 'file=/s', '-fw_cfg', 'name=opt/x,file=/f'],
      ['/a', '/b', '/s', '/f'],
    ],
    [
      ['-device', 'loader,file=/l,cpu-num=0', '-device', '{"driver":"e1000","romfile":"/j.rom"}'],
      ['/l', '/j.rom'],
    ],
    [['-option-rom', '/o.rom,bootindex=1'], ['/o.rom']],
  ])('of %j', (argv, expected) => {
    expect(paths(argv)).toEqual(expected);
  });

  it('of flash drives that the machine names, through their format', () => {
    const argv = [
      ...['-machine', 'q35,pflash0=fmt,pflash1=vars'],
      ...['-blockdev', '{"driver":"file","filename":"/fw/code.fd","node-name":"store"}'],
      ...['-blockdev', '{"driver":"raw","file":"store","node-name":"fmt"}'],
      ...['-blockdev', 'driver=file,filename=/fw/vars.fd,node-name=vars'],
      ...['-blockdev', 'driver=file,filename=/disk.img,node-name=disk'],
    ];
    expect(paths(argv)).toEqual(['/fw/code.fd', '/fw/vars.fd']);
  });

  it('are whole folders of -L and of libraries', () => {
    const env = { LD_LIBRARY_PATH: '/lib1::lib2', QEMU_MODULE_DIR: '/mod' };
    expect(files(['-L', '/firmware'], env).filter(({ isFolder }) => isFolder)).toEqual(
      ['/firmware', '/lib1', '/run/vm/lib2', '/mod'].map((path) => ({ path, isFolder: true })),
    );
  });
});
