/** What a copy beside the original gets of its own. */

import { describe, expect, it } from '@jest/globals';

import { formatCommandLine, parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { restoredCommandLine } from '../../adapters/kvm/restore/argv.js';
import { renamed } from '../../adapters/kvm/restore/renamed.js';

const copied = (...argv: readonly string[]): readonly string[] =>
  formatCommandLine(renamed(parseCommandLine(['-name', 'web1', ...argv]), 'web2')).slice(2);

describe('a copy called web2 of web1', () => {
  it('has its name and another UUID', () => {
    const options = renamed(parseCommandLine(['-name', 'guest=web1,debug-threads=on', '-uuid', 'u']), 'web2');
    expect(options[0]?.value).toBe('guest=web2,debug-threads=on');
    expect(options[1]?.value).toMatch(/^[0-9a-f]{8}-/);
    expect(formatCommandLine(renamed([], 'web2'))).toEqual(['-name', 'web2']);
  });

  it.each([
    [['-qmp', 'unix:/run/web1.qmp,server=on,wait=off'], 'unix:/run/web2.qmp,server=on,wait=off'],
    [['-qmp', 'unix:/run/web1/qmp.sock,server'], 'unix:/run/web1/web2-qmp.sock,server'],
    [['-serial', 'unix:relative,server=on'], 'unix:web2-relative,server=on'],
    [['-monitor', 'tcp:127.0.0.1:4444,server=on'], 'tcp:127.0.0.1:4444,server=on,to=4543'],
    [['-serial', 'file:/log/web1'], 'file:/log/web2'],
    [['-pidfile', '/run/web1.pid'], '/run/web2.pid'],
    [['-vnc', ':1'], ':1,to=99'],
    [['-vnc', 'unix:/run/web1.vnc'], 'unix:/run/web2.vnc'],
    [['-chardev', 'socket,id=c,path=/run/a,,b,server=on'], 'socket,id=c,path=/run/web2-a,,b,server=on'],
    [['-chardev', 'file,id=c,path=/log/c,append=on'], 'file,id=c,path=/log/web2-c,append=on'],
    [['-chardev', 'socket,id=c,host=::1,port=9,server=on'], 'socket,id=c,host=::1,port=9,server=on,to=108'],
    [
      ['-object', 'memory-backend-file,id=m,mem-path=/dev/shm/web1,share=on'],
      'memory-backend-file,id=m,mem-path=/dev/shm/web2,share=on',
    ],
    [
      ['-object', '{"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/m","share":true}'],
      '{"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/web2-m","share":true}',
    ],
    [
      ['-netdev', 'user,id=n,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:53'],
      'user,id=n,hostfwd=tcp::0-:22,hostfwd=udp:127.0.0.1:0-:53',
    ],
    [
      ['-netdev', 'stream,id=n,server=on,addr.type=unix,addr.path=/run/n'],
      'stream,id=n,server=on,addr.type=unix,addr.path=/run/web2-n',
    ],
  ] as const)('%j', (argv, value) => {
    expect(copied(...argv)[1]).toBe(value);
  });

  it.each([
    [['-chardev', 'socket,id=tpm,path=/run/swtpm.sock']],
    [['-netdev', 'tap,id=n,ifname=tap0']],
    [['-netdev', 'stream,id=n,addr.type=unix,addr.path=/run/switch']],
    [['-drive', 'file=web1.qcow2']],
    [['-serial', 'unix:/run/console']],
    [['-object', 'memory-backend-ram,id=m,size=1G']],
  ] as const)('shares %j as it is', (argv) => {
    expect(copied(...argv)).toEqual(argv);
  });

  it('takes commands at its own socket, and what the operator sets goes before', () => {
    const machine = {
      argv: [
        '-name',
        'web1',
        '-qmp',
        'unix:/run/web1.other,server=on',
        '-qmp',
        'unix:/run/web1.qmp,server=on',
      ],
      cwd: '/srv',
      program: '/usr/bin/qemu',
      env: {},
      rights: undefined,
      qemuVersion: '7.2.0',
      machineType: 'pc',
      qmpPath: '/run/web1.qmp',
      presentDisks: [],
      presentObjects: [],
    };
    expect(restoredCommandLine(machine, { newName: 'web2', paused: false }).qmpPath).toBe('/run/web2.qmp');
    const edited = restoredCommandLine(machine, { newName: 'web2', paused: false, setArgs: ['-name=web3'] });
    expect(edited.options.find(({ name }) => name === 'name')?.value).toBe('web3');
  });
});
