/**
 * Machines whose back ends, limits and objects were changed while they ran, on both QEMUs. What is held against the
 * command line is shown on a QEMU without a guest, which starts at once.
 */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';

import { afterEach, describe, expect, it } from '@jest/globals';

import { PresentMachine } from '../../adapters/kvm/inspect/present-machine.js';
import { QmpClient } from '../../adapters/qemu/qmp-client.js';
import { LabMachine } from './machine.js';
import { cairn, runCairn } from './support/cairn-cli.js';
import { HarnessQmp } from './support/harness-qmp.js';
import { ensureLab, qemuProgram, scratchDir, type QemuVersion } from './support/lab-files.js';

const VERSIONS: readonly QemuVersion[] = ['7.2', '10.0'];

/** A QEMU whose machine stands before its first instruction. */
class BareQemu {
  readonly dir = scratchDir('bare');
  readonly #child: ChildProcess;
  readonly #argv: readonly string[];
  qmp!: HarnessQmp;

  private constructor(version: QemuVersion, args: readonly string[], display: readonly string[]) {
    ensureLab();
    const program = qemuProgram(version);
    this.#argv = [
      ...[...program.firmwareArgs, '-S', '-m', '32', ...display],
      ...['-qmp', `unix:${this.dir}/qmp.sock,server=on,wait=off`],
      ...['-qmp', `unix:${this.dir}/harness.sock,server=on,wait=off`],
      ...args.map((arg) => arg.replaceAll('DIR', this.dir)),
    ];
    this.#child = spawn(program.path, this.#argv, { cwd: this.dir, env: program.env, stdio: 'pipe' });
  }

  static async start(
    version: QemuVersion,
    args: readonly string[],
    display: readonly string[] = ['-display', 'none'],
  ): Promise<BareQemu> {
    const qemu = new BareQemu(version, args, display);
    let said = '';
    qemu.#child.stderr!.on('data', (chunk: Buffer) => (said += chunk.toString()));
    try {
      qemu.qmp = await HarnessQmp.connect(join(qemu.dir, 'harness.sock'), undefined, () => !qemu.#hasEnded);
    } catch (cause) {
      await qemu.end();
      throw new Error(`QEMU does not start: ${said}`, { cause });
    }
    return qemu;
  }

  /** What a checkpoint would be refused for. */
  async changes(): Promise<readonly string[]> {
    const monitor = await QmpClient.connect(join(this.dir, 'qmp.sock'), {});
    try {
      const machine = new PresentMachine(monitor, this.#child.pid!, {
        argv: ['qemu', ...this.#argv],
        cwd: this.dir,
      });
      return (await machine.hazards()).map(({ text }) => text.replaceAll(this.dir, 'DIR'));
    } finally {
      await monitor.close();
    }
  }

  get #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async end(): Promise<void> {
    (this.qmp as HarnessQmp | undefined)?.close();
    const ended = this.#hasEnded || once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
    rmSync(this.dir, { recursive: true, force: true });
  }
}

let bare: BareQemu | undefined;
afterEach(async () => {
  await bare?.end();
  bare = undefined;
});

/** One machine may have many: each set is started once. */
const UNCHANGED: readonly (readonly [string, readonly string[], (readonly string[])?])[] = [
  ['ports of its own', []],
  ['ports of its own, on the terminal', [], ['-nographic']],
  ['ports on the terminal without a monitor', ['-monitor', 'none'], ['-nographic']],
  ['no ports', ['-nodefaults']],
  ['a display of VNC', ['-vnc', 'unix:DIR/vnc'], []],
  ['a port that shares the terminal', ['-serial', 'mon:stdio', '-parallel', 'none']],
  [
    'ports of each kind',
    [
      ...['-serial', 'none', '-serial', 'file:DIR/a,b', '-serial', 'null', '-serial', 'vc:80Cx24C'],
      ...['-parallel', 'pty', '-monitor', 'unix:DIR/hmp,server,nowait', '-debugcon', 'file:DIR/debug'],
    ],
  ],
  [
    'ports on sockets',
    [
      ...['-serial', 'unix:DIR/u,server=on,wait=off', '-serial', 'tcp:127.0.0.1:0,server=on,wait=off'],
      ...['-serial', 'telnet::47391,server,nowait', '-serial', 'udp:127.0.0.1:4555', '-gdb', 'tcp::47392'],
    ],
  ],
  [
    'chardevs on sockets',
    [
      ...[
        '-chardev',
        'socket,id=serial0,path=rel,server=on,wait=off',
        '-device',
        'isa-serial,chardev=serial0',
      ],
      ...['-chardev', 'socket,id=b,host=localhost,port=0,server=on,wait=off'],
      ...['-chardev', 'socket,id=c,host=localhost,port=47393,to=47399,server=on,wait=off'],
      ...[
        '-chardev',
        'socket,id=d,path=DIR/d,server=on,wait=off,mux=on',
        '-mon',
        'd',
        '-serial',
        'chardev:d',
      ],
      ...['-chardev', 'socket,id=e,path=DIR/nobody,reconnect=5', '-device', 'virtio-serial'],
      ...['-device', 'virtserialport,chardev=e', '-chardev', 'socket,id=f,host=127.0.0.1,port=1,reconnect=5'],
      ...['-chardev', 'socket,id=g,path=abs,abstract=on,server=on,wait=off,websocket=on'],
      ...['-chardev', 'socket,id=h,path=DIR/h,,1,server,nowait,telnet=on'],
    ],
  ],
  [
    'chardevs of each kind',
    [
      ...['-chardev', 'file,id=a,path=DIR/f,append=on', '-serial', 'chardev:a', '-chardev', 'ringbuf,id=b'],
      ...['-chardev', 'memory,id=c', '-chardev', 'pty,id=d', '-chardev', 'vc,id=e', '-chardev', 'stdio,id=s'],
      ...['-chardev', 'null,id=i,mux=on,logfile=DIR/log', '-mon', 'i', '-serial', 'chardev:i'],
      ...['-chardev', 'udp,id=u,port=999', '-chardev', 'qemu-vdagent,id=vd', '-chardev', 'testdev,id=t'],
      ...['-chardev', 'serial,id=y,path=/dev/ptmx', '-chardev', 'file,id=n,path=/dev/null'],
      ...['-chardev', 'null,id=set', '-set', 'chardev.set.logfile=DIR/set.log'],
    ],
  ],
  [
    'cards of each kind',
    [
      ...[
        '-netdev',
        'user,id=n0',
        '-device',
        'virtio-net-pci,netdev=n0,id=nic0',
        '-netdev',
        'user,id=unused',
      ],
      ...['-nic', 'user,model=rtl8139', '-net', 'nic,model=ne2k_pci', '-net', 'user', '-nic', 'user,id=n2'],
      ...['-netdev', 'hubport,id=hp,hubid=3,netdev=unused', '-netdev', 'hubport,id=hq,hubid=3'],
      ...['-device', 'e1000,netdev=hq', '-netdev', 'stream,id=s,server=on,addr.type=unix,addr.path=DIR/s'],
      ...['-device', 'pcnet,netdev=s', '-device', 'e1000'],
    ],
  ],
  [
    'objects',
    [
      ...['-object', 'iothread,id=io0', '-object', '{"qom-type":"iothread","id":"io1","poll-max-ns":9}'],
      ...['-netdev', 'user,id=n', '-device', 'e1000,netdev=n'],
      ...['-object', 'filter-buffer,id=f0,netdev=n,interval=1000,status=off'],
      ...['-object', 'throttle-group,id=g0,x-iops-total=10'],
      ...['-blockdev', 'driver=null-co,node-name=d0,read-zeroes=on'],
      ...['-blockdev', 'driver=throttle,node-name=t0,throttle-group=g0,file=d0'],
      ...['-device', 'virtio-blk-pci,drive=t0,iothread=io0'],
    ],
  ],
];

describe.each(VERSIONS)('QEMU %s', (version) => {
  describe('is not refused', () => {
    it.each(UNCHANGED.map(([what, ...given]) => [what, given] as const))('with %s', async (_what, given) => {
      const [args, display] = given;
      bare = await BareQemu.start(version, args, display);
      expect(await bare.changes()).toEqual([]);
    });

    it('while somebody is connected to a port, before and after', async () => {
      const ports = ['-serial', 'unix:DIR/u,server=on,wait=off', '-serial', 'tcp::47401,server=on,wait=off'];
      bare = await BareQemu.start(version, ports);
      const clients = [connect(join(bare.dir, 'u')), connect(47_401, '127.0.0.1')];
      await Promise.all(clients.map((client) => once(client, 'connect')));
      expect(await bare.changes()).toEqual([]);
      for (const client of clients) client.destroy();
      expect(await bare.changes()).toEqual([]);
    });

    it('when the log of a port was rotated, removed, or is written to by a link', async () => {
      const dir = scratchDir('logs');
      const log = join(dir, 'serial.log');
      symlinkSync(join(dir, 'behind'), join(dir, 'link'));
      bare = await BareQemu.start(version, [
        '-serial',
        `file:${log}`,
        '-serial',
        `file:${join(dir, 'link')}`,
      ]);
      renameSync(log, `${log}.1`);
      expect(await bare.changes()).toEqual([]);
      writeFileSync(log, '');
      expect(await bare.changes()).toEqual([]);
      rmSync(dir, { recursive: true });
      expect(await bare.changes()).toEqual([]);
    });

    it('for what a restore can do without', async () => {
      bare = await BareQemu.start(version, ['-netdev', 'user,id=n0', '-device', 'e1000,netdev=n0']);
      await bare.qmp.command('chardev-add', { id: 'more', backend: { type: 'null', data: {} } });
      await bare.qmp.command('netdev_add', { type: 'user', id: 'more' });
      for (const type of ['iothread', 'throttle-group'])
        await bare.qmp.command('object-add', { 'qom-type': type, id: `more-${type}` });
      await bare.qmp.command('object-add', { 'qom-type': 'secret', id: 'key', data: 'x' });
      await bare.qmp.command('object-add', {
        ...{ 'qom-type': 'filter-dump', id: 'dump', netdev: 'n0', file: join(bare.dir, 'dump') },
      });
      expect(await bare.changes()).toEqual([]);
    });
  });

  it('is refused for each back end of a port that was exchanged', async () => {
    const disk = 'serial,id=unused,path=/dev/ptmx';
    bare = await BareQemu.start(version, [
      ...['-serial', 'file:DIR/a', '-serial', 'unix:DIR/u,server=on,wait=off', '-serial', 'null'],
      ...['-chardev', 'socket,id=s,host=127.0.0.1,port=47411,server=on,wait=off', '-serial', 'chardev:s'],
      ...['-chardev', disk],
    ]);
    const to = async (id: string, type: string, data: Record<string, unknown>): Promise<void> => {
      await bare!.qmp.command('chardev-change', { id, backend: { type, data } });
    };
    const socket = (path: string): Record<string, unknown> => ({
      ...{ addr: { type: 'unix', data: { path: join(bare!.dir, path) } }, server: true, wait: false },
    });
    await to('serial0', 'file', { out: join(bare.dir, 'other') });
    await to('serial1', 'socket', socket('u2'));
    await to('serial2', 'pty', {});
    await to('s', 'socket', socket('u3'));
    await bare.qmp.command('chardev-remove', { id: 'unused' });
    const [text = '', ...more] = await bare.changes();
    expect(more).toEqual([]);
    expect(text.split(/: |; /).slice(1)).toEqual([
      'the chardev s was changed from the socket :47411 to the socket DIR/u3',
      'the chardev unused was removed',
      'the chardev serial0 does not write to DIR/a any more',
      'the chardev serial1 was changed from the socket DIR/u to the socket DIR/u2',
      'the chardev serial2 was changed from null to pty',
    ]);
  });

  it('is refused when the netdev of a card was deleted, and when another one has its name', async () => {
    bare = await BareQemu.start(version, ['-netdev', 'user,id=n0', '-device', 'e1000,netdev=n0,id=nic0']);
    const set = { path: '/machine/peripheral/nic0', property: 'netdev', value: 'n1' };
    await bare.qmp.command('netdev_add', { type: 'user', id: 'n1' });
    // So nothing else can have taken its place.
    await expect(bare.qmp.command('qom-set', set)).rejects.toThrow('after it was realized');
    await bare.qmp.command('netdev_del', { id: 'n0' });
    const refused = [expect.stringMatching(/: the netdev n0 of nic0 was deleted$/)];
    expect(await bare.changes()).toEqual(refused);
    expect(await bare.changes()).toEqual(refused);
    await bare.qmp.command('netdev_add', { type: 'user', id: 'n0' });
    expect(await bare.changes()).toEqual(refused);
  });

  it('is refused for an object that acts by itself, and for a throttle group that a disk was given', async () => {
    bare = await BareQemu.start(version, [
      ...['-netdev', 'user,id=n', '-device', 'e1000,netdev=n'],
      ...['-object', 'filter-buffer,id=f0,netdev=n,interval=1000', '-object', 'throttle-group,id=g0'],
      ...['-blockdev', 'driver=null-co,node-name=d0,read-zeroes=on'],
      ...['-blockdev', 'driver=throttle,node-name=t0,throttle-group=g0,file=d0'],
      ...['-device', 'virtio-blk-pci,drive=t0'],
    ]);
    const { qmp } = bare;
    await qmp.command('object-add', { 'qom-type': 'filter-replay', id: 'f1', netdev: 'n' });
    await qmp.command('object-del', { id: 'f0' });
    await qmp.command('object-add', { 'qom-type': 'throttle-group', id: 'g1' });
    const node = { driver: 'throttle', 'node-name': 't0', file: 'd0', 'throttle-group': 'g1' };
    await qmp.command('blockdev-reopen', { options: [node] });
    const [text = ''] = await bare.changes();
    expect(text.split(/: |; /).slice(1)).toEqual([
      'filter-replay (f1) was added while it ran',
      'throttle-group (g1) was added while it ran',
      'filter-buffer (f0) was removed',
    ]);
  });
});

describe.each(VERSIONS)('a guest under QEMU %s', (qemu) => {
  let machine: LabMachine;
  afterEach(() => machine.destroy());

  it('comes back with limits, settings and link as they were; a port that was exchanged is refused', async () => {
    const dir = scratchDir('ends');
    const second = join(dir, 'second.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', second, '16M']);
    machine = await LabMachine.start({
      ...{ name: 'ends', dir, qemu, memoryMib: 96, devices: ['disk', 'net'] },
      extraArgs: [
        ...['-drive', `file=${second},if=none,id=d1,format=qcow2,throttling.iops-total=500`],
        ...['-object', 'iothread,id=io0', '-device', 'virtio-blk-pci,drive=d1,iothread=io0,id=second'],
        ...['-object', 'throttle-group,id=g0,x-iops-total=10', '-serial', 'null'],
      ],
    });
    const options = { dir };
    const repo = ['--repo', join(dir, 'repo')];
    await cairn(['init', ...repo], options);
    const none = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };
    const limits = { ...none, iops: 70, bps_wr: 1 << 20, iops_max: 700, iops_max_length: 3, iops_size: 4096 };
    const { qmp } = machine;
    await qmp.command('block_set_io_throttle', { device: 'd1', ...none });
    await qmp.command('block_set_io_throttle', { device: 'disk0', ...limits, group: 'shared' });
    const set = (path: string, property: string, value: unknown): Promise<unknown> =>
      qmp.command('qom-set', { path: `/objects/${path}`, property, value });
    await set('g0', 'limits', { 'iops-total': 20, 'bps-read': 4096 });
    await set('io0', 'poll-max-ns', 7);
    await set('io0', 'thread-pool-max', 90);
    await set('io0', 'thread-pool-min', 80);
    await qmp.command('set_link', { name: 'net0', up: false });
    const seen = async (): Promise<unknown> => ({
      disks: ((await machine.qmp.command('query-block')) as { inserted: Record<string, unknown> }[]).map(
        ({ inserted }) => [
          inserted.group,
          inserted.iops,
          inserted.bps_wr,
          inserted.iops_max,
          inserted.iops_size,
        ],
      ),
      group: await machine.qmp.command('qom-get', { path: '/objects/g0', property: 'limits' }),
      pool: await machine.qmp.command('qom-get', { path: '/objects/io0', property: 'thread-pool-min' }),
      threads: ((await machine.qmp.command('query-iothreads')) as Record<string, unknown>[]).map(
        (thread) => ({
          ...thread,
          'thread-id': 0,
        }),
      ),
      carrier: (await machine.guest('cat /sys/class/net/eth0/carrier')).trim(),
    });
    const before = await seen();
    expect(before).toMatchObject({
      disks: [
        ['shared', 70, 1 << 20, 700, 4096],
        [undefined, 0, 0, undefined, undefined],
      ],
      group: { 'iops-total': 20, 'bps-read': 4096 },
      pool: 80,
      carrier: '0',
    });
    await cairn(['checkpoint', machine.address, ...repo], options);
    await machine.kill();
    const { pid } = await cairn(['restore', 'latest', ...repo], options);
    machine = await LabMachine.adopt('ends', dir, Number(pid));
    await machine.waitForProgress();
    expect(await seen()).toEqual(before);
    await machine.qmp.command('set_link', { name: 'net0', up: true });
    expect(await machine.guest('sleep 1; cat /sys/class/net/eth0/carrier')).toContain('1');

    await machine.qmp.command('chardev-change', { id: 'serial2', backend: { type: 'pty', data: {} } });
    const { exitCode, messages } = await runCairn(['checkpoint', machine.address, ...repo], options);
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: 22,
      error: {
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining('the chardev serial2 was changed from null to pty'),
        detail: { hazard: 'MACHINE_CHANGED' },
      },
    });
    const doctor = await runCairn(['doctor', machine.address], options);
    expect(doctor.messages.at(-1)?.hazards).toContainEqual(
      expect.objectContaining({ code: 'MACHINE_CHANGED', effect: 'refuse' }),
    );
    await machine.waitForProgress();
  });
});
