/** What a command line takes of the host, and whether a process has it already. */

import { mkdtempSync, openSync, closeSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { claimsOf } from '../../adapters/kvm/restore/claims.js';
import { refuseNeighbours } from '../../adapters/kvm/restore/neighbours.js';

const claims = (...argv: readonly string[]): readonly unknown[] =>
  claimsOf(parseCommandLine(argv), '/srv').map((claim) =>
    Object.fromEntries(Object.entries(claim).filter(([key]) => key !== 'option')),
  );

describe('what a command line takes', () => {
  it.each([
    [['-drive', 'file=web.qcow2,format=qcow2'], { kind: 'file', path: '/srv/web.qcow2' }],
    [['-hda', '/dev/vg/web'], { kind: 'file', path: '/dev/vg/web' }],
    [
      ['-blockdev', '{"driver":"file","node-name":"n","filename":"/srv/a"}'],
      { kind: 'file', path: '/srv/a' },
    ],
    [['-pidfile', 'pid'], { kind: 'file', path: '/srv/pid' }],
    [['-D', 'log'], { kind: 'file', path: '/srv/log' }],
    [['-serial', 'file:out'], { kind: 'file', path: '/srv/out' }],
    [['-chardev', 'file,id=a,path=/srv/out'], { kind: 'file', path: '/srv/out' }],
    [
      ['-object', 'memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on'],
      { kind: 'memory', path: '/dev/shm/m' },
    ],
    [
      ['-object', '{"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/m","share":true}'],
      { kind: 'memory', path: '/dev/shm/m' },
    ],
    [
      ['-object', 'memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m'],
      { kind: 'private-memory', path: '/dev/shm/m' },
    ],
    [
      ['-netdev', 'dgram,id=n,local.type=unix,local.path=/srv/l,remote.type=unix,remote.path=/srv/r'],
      { kind: 'datagrams', path: '/srv/l' },
    ],
    [['-netdev', 'socket,id=n,listen=:4000'], { kind: 'tcp', host: '', port: 4000 }],
    [
      ['-netdev', 'socket,id=n,udp=h:1,localaddr=127.0.0.1:4001'],
      { kind: 'udp', host: '127.0.0.1', port: 4001 },
    ],
    [
      ['-netdev', 'stream,id=n,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=4002'],
      { kind: 'tcp', host: '127.0.0.1', port: 4002 },
    ],
    [['-netdev', 'user,id=n,hostfwd=tcp::2222-:22'], { kind: 'tcp', host: '', port: 2222 }],
    [['-nic', 'user,hostfwd=udp:127.0.0.1:53-:53'], { kind: 'udp', host: '127.0.0.1', port: 53 }],
    [['-netdev', 'tap,id=n,ifname=tap3,script=no'], { kind: 'tap', name: 'tap3' }],
    [['-vnc', '127.0.0.1:2'], { kind: 'tcp', host: '127.0.0.1', port: 5902 }],
    [['-qmp', 'tcp:localhost:4444,server=on,wait=off'], { kind: 'tcp', host: 'localhost', port: 4444 }],
    [['-chardev', 'socket,id=c,host=::,port=4445,server=on'], { kind: 'tcp', host: '::', port: 4445 }],
    [['-gdb', 'tcp::1235'], { kind: 'tcp', host: '', port: 1235 }],
    [['-s'], { kind: 'tcp', host: '', port: 1234 }],
  ] as const)('%j', (argv, claim) => {
    expect(claims(...argv)).toEqual([claim]);
  });

  it.each([['rbd:vms/first:conf=/etc/ceph/ceph.conf'], ['nbd://host/disk']])(
    'is no file of this host where the image is %s',
    (name) => {
      expect(claims('-drive', `file=${name},format=raw`)).toEqual([]);
      expect(claims('-hda', name)).toEqual([]);
    },
  );

  it('are the processes that serve one VM', () => {
    const chardev = 'socket,id=tpm,path=/run/swtpm.sock';
    expect(claims('-chardev', chardev, '-tpmdev', 'emulator,id=t,chardev=tpm')).toEqual([
      { kind: 'back-end', path: '/run/swtpm.sock' },
    ]);
    expect(claims('-chardev', chardev, '-device', 'vhost-user-fs-pci,chardev=tpm,tag=x')).toHaveLength(1);
    expect(claims('-chardev', chardev, '-device', 'isa-serial,chardev=tpm')).toEqual([]);
  });

  it.each([
    [['-drive', 'file=a.iso,media=cdrom']],
    [['-drive', 'file=a.qcow2,readonly=on']],
    [['-drive', 'file=a.qcow2,snapshot=on']],
    [['-snapshot', '-hda', 'a.qcow2']],
    [['-chardev', 'file,id=a,path=/srv/out,append=on']],
    [['-vnc', '127.0.0.1:0,to=99']],
    [['-vnc', 'unix:/run/v']],
    [['-qmp', 'tcp:localhost:4444']],
    [['-netdev', 'tap,id=n,ifname=vnet%d']],
    [['-netdev', 'stream,id=n,addr.type=inet,addr.host=h,addr.port=4002']],
  ] as const)('nothing: %j', (argv) => {
    expect(claims(...argv)).toEqual([]);
  });
});

describe('a restore beside a process that has the same', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-neighbours-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  const check = (...argv: readonly string[]): Promise<void> => refuseNeighbours(parseCommandLine(argv), dir);
  const expectBusy = async (text: string, ...argv: readonly string[]): Promise<void> => {
    await expect(check(...argv)).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
      message: expect.stringContaining(text),
    });
  };

  it('is refused while that writes to a disk, and not while it reads', async () => {
    writeFileSync(join(dir, 'disk'), 'x');
    const keeper = async (mode: 'r' | 'r+', test: () => Promise<void>): Promise<void> => {
      const descriptor = openSync(join(dir, 'disk'), mode);
      const child = spawn('sleep', ['60'], { stdio: ['ignore', 'ignore', 'ignore', descriptor] });
      closeSync(descriptor);
      await once(child, 'spawn');
      try {
        await test();
      } finally {
        child.kill('SIGKILL');
        await once(child, 'exit');
      }
    };
    await keeper('r', () => check('-hda', 'disk'));
    await keeper('r+', () => expectBusy('sleep', '-hda', 'disk'));
    await check('-hda', 'disk');
  });

  it('is refused while a port is taken, at that address', async () => {
    const server: Server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    await expectBusy(`tcp port ${port}`, '-netdev', `user,id=n,hostfwd=tcp::${port}-:22`);
    await expectBusy(`tcp port ${port}`, '-netdev', `user,id=n,hostfwd=tcp:127.0.0.1:${port}-:22`);
    await check('-netdev', `user,id=n,hostfwd=tcp:127.0.0.9:${port}-:22`);
    await check('-netdev', `user,id=n,hostfwd=udp::${port}-:22`);
    await new Promise((resolve) => server.close(resolve));
    await check('-netdev', `user,id=n,hostfwd=tcp::${port}-:22`);
  });

  it('is refused while a port for datagrams is taken', async () => {
    const socket = createSocket('udp4').bind(0, '127.0.0.1');
    await once(socket, 'listening');
    const { port } = socket.address();
    await expectBusy(
      `udp port ${port}`,
      '-netdev',
      `socket,id=n,udp=127.0.0.1:9,localaddr=127.0.0.1:${port}`,
    );
    socket.close();
  });
});
