/** Runs in dom0: a guest made with xl, watched through its console log. */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { QmpClient } from '../../../../adapters/qemu/qmp-client.js';
import { asObject, asText } from '../../../../adapters/qemu/qmp-json.js';

export interface GuestOptions {
  readonly name: string;
  readonly type?: 'pvh' | 'pv' | 'hvm';
  readonly memoryMib?: number;
  readonly vcpus?: number;
  /** Random data written each second. */
  readonly churnKib?: number;
  /** Small files rewritten each second. */
  readonly files?: number;
  readonly network?: boolean;
  /**
   * A disk behind blkback, with the buffers of its requests granted for good or anew for each request. Or one that the guest expects to go back
   * together with its memory: in a qcow2 image behind a QEMU, or on a logical volume behind blkback.
   */
  readonly disk?: 'persistent-grants' | 'grants-for-each-request' | 'qcow2' | 'volume';
  /** Of an HVM guest with a disk: it goes through the IDE controller that QEMU emulates, which writes to guest memory itself. No network then. */
  readonly emulatedDisk?: boolean;
  /** Of an HVM guest: it has no Xen drivers, so emulated devices only, no balloon, and a serial port for a console. */
  readonly isUnaware?: boolean;
  /** Of an HVM guest: in a graphics mode, shown over VNC. None when it is not said. */
  readonly graphics?: 'cirrus' | 'stdvga';
  /** Of an HVM guest: graphics, screen over VNC and network cards as xl gives them to a guest whose configuration says nothing of them. */
  readonly isPlain?: boolean;
  /** Lines added to the configuration. */
  readonly extra?: readonly string[];
}

/** A line of the guest's counter: `TICK n lines n cpus n net up disk ok`. */
export interface Tick {
  readonly tick: number;
  readonly lines: number;
  readonly cpus: number;
  readonly net: string;
  /** `none`, `ok`, or `bad` once it has read something else than it wrote. */
  readonly disk: string;
}

const TICK = /^TICK (\d+) lines (\d+) cpus (\d+) net (\S+) disk (\S+)/gm;
/** 1024x768, 16 bits. */
const GRAPHICS_MODE = 791;
/** Emulated twice over: minutes on a busy host. */
const BOOT_LIMIT_MS = 600_000;
const DISK_MIB = 32;
const LOOP_DEVICE = '/dev/loop0';
/** Not on a tmpfs: the QEMU of a domain reads and writes past the page cache. */
const QCOW2_IMAGE = '/root/guest-disk.qcow2';
const VOLUME = '/dev/lab/guest';
/** Of every guest with a network interface, see guest/init. */
const GUEST_ADDRESS = '10.7.0.2';

export function xl(...args: readonly string[]): string {
  return execFileSync('xl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export class XenGuest {
  readonly name: string;
  readonly address: string;
  readonly configPath: string;

  constructor(options: GuestOptions) {
    this.name = options.name;
    this.address = `xen:${options.name}`;
    this.configPath = `/tmp/${options.name}.cfg`;
    const {
      type = 'pvh',
      memoryMib = 128,
      vcpus = 1,
      churnKib = 0,
      files = 0,
      isUnaware = false,
      emulatedDisk = isUnaware,
      graphics,
      isPlain = false,
      network = isUnaware || !emulatedDisk,
      disk,
      extra = [],
    } = options;
    const isEmulated = type === 'hvm';
    const kernelArgs = [
      graphics === undefined ? 'console=hvc0 quiet' : `console=hvc0 quiet vga=${GRAPHICS_MODE}`,
      ...(isUnaware ? ['xen_nopv'] : []),
      `lab.churn=${churnKib} lab.files=${files}`,
      // Devices stay emulated, and so there are no PV ones.
      ...(emulatedDisk ? ['xen_emul_unplug=never'] : []),
      ...(disk === undefined
        ? []
        : [
            `lab.disk=1 lab.persistent=${disk === 'grants-for-each-request' ? 0 : 1} lab.rollback=${disk === 'qcow2' || disk === 'volume' ? 1 : 0}`,
          ]),
    ];
    const lines = [
      `name="${options.name}"`,
      `type="${type}"`,
      'kernel="/lab/vmlinuz"',
      'ramdisk="/lab/guest.initrd"',
      `memory=${memoryMib}`,
      `vcpus=${vcpus}`,
      `extra="${kernelArgs.join(' ')}"`,
      ...(network
        ? [`vif=['script=/lab/vif-lab${isEmulated && !isUnaware && !isPlain ? ',type=vif' : ''}']`]
        : []),
      ...(isEmulated && !isPlain
        ? [
            `vga="${graphics ?? 'none'}"`,
            `vnc=${graphics === undefined ? 0 : 1}`,
            `serial="${isUnaware ? serialPipe(options.name) : 'null'}"`,
          ]
        : []),
      ...(disk === undefined ? [] : [diskLine(disk)]),
      ...extra,
    ];
    writeFileSync(this.configPath, lines.join('\n') + '\n');
  }

  static async start(options: GuestOptions): Promise<XenGuest> {
    const guest = new XenGuest(options);
    if (options.disk === 'qcow2') {
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', QCOW2_IMAGE, `${DISK_MIB}M`]);
    } else if (options.disk === 'volume') makeVolume();
    else if (options.disk !== undefined) makeLoopDevice();
    xl('create', guest.configPath);
    await guest.waitFor((tick) => tick >= 2, BOOT_LIMIT_MS);
    return guest;
  }

  get domid(): number {
    return Number(xl('domid', this.name));
  }

  console(): string {
    const path = `/var/log/xen/console/guest-${this.name}.log`;
    return existsSync(path) ? readFileSync(path, 'latin1') : '';
  }

  /** All ticks printed so far, by every incarnation of this name. */
  ticks(): readonly Tick[] {
    return [...this.console().matchAll(TICK)].map(([, tick, lines, cpus, net = '', disk = '']) => ({
      tick: Number(tick),
      lines: Number(lines),
      cpus: Number(cpus),
      net,
      disk,
    }));
  }

  lastTick(): number {
    return this.ticks().at(-1)?.tick ?? 0;
  }

  async waitFor(fits: (tick: number) => boolean, limitMs = 60_000): Promise<void> {
    const until = Date.now() + limitMs;
    while (!fits(this.lastTick())) {
      if (Date.now() > until) {
        throw new Error(`${this.name} does not count on: ${this.console().slice(-600)}`);
      }
      await sleep(200);
    }
  }

  /** Waits until it has counted on by `more`. */
  async countOn(more: number, limitMs = 60_000): Promise<void> {
    const from = this.lastTick();
    await this.waitFor((tick) => tick >= from + more, limitMs);
  }

  /** The state column of xl list, such as `-b----`. */
  state(): string {
    const line = xl('list', this.name).trim().split('\n').at(-1) ?? '';
    return line.trim().split(/\s+/)[4] ?? '';
  }

  /** As xl list shows it. */
  memoryMib(): number {
    const line = xl('list', this.name).trim().split('\n').at(-1) ?? '';
    return Number(line.trim().split(/\s+/)[2]);
  }

  /** Of its QEMU, by the monitor beside the one that Cairn uses: `running`, `paused`. */
  async deviceModelStatus(): Promise<string> {
    const monitor = await QmpClient.connect(`/var/run/xen/qmp-libxenstat-${this.domid}`);
    try {
      return asText(asObject(await monitor.execute('query-status')).status);
    } finally {
      await monitor.close();
    }
  }

  destroy(): void {
    xl('destroy', this.name);
  }
}

/** Its output goes to the log that xenconsoled would write, through as many QEMUs as there will be. */
function serialPipe(name: string): string {
  const path = `/tmp/serial-${name}`;
  execFileSync('/lab/bin/mkfifo', [`${path}.in`, `${path}.out`]);
  const log = `/var/log/xen/console/guest-${name}.log`;
  spawn('sh', ['-c', `while :; do cat ${path}.out >>${log}; done`], { stdio: 'ignore' }).unref();
  return `pipe:${path}`;
}

function diskLine(disk: NonNullable<GuestOptions['disk']>): string {
  if (disk === 'qcow2') return `disk=['format=qcow2,vdev=xvda,access=rw,target=${QCOW2_IMAGE}']`;
  const target = disk === 'volume' ? VOLUME : LOOP_DEVICE;
  return `disk=['format=raw,vdev=xvda,access=rw,script=/lab/block-lab,target=${target}']`;
}

/** A thin volume in a group on a loop device. */
function makeVolume(): void {
  const file = '/tmp/volumes.img';
  execFileSync('truncate', ['-s', '160M', file]);
  for (const module of ['loop', 'dm-thin-pool', 'dm-snapshot']) execFileSync('/lab/bin/modprobe', [module]);
  execFileSync('/lab/bin/losetup', [LOOP_DEVICE, file]);
  const lvm = (...args: readonly string[]): void => {
    execFileSync('lvm', args, { stdio: ['ignore', 'ignore', 'inherit'] });
  };
  lvm('pvcreate', '-q', LOOP_DEVICE);
  lvm('vgcreate', '-q', 'lab', LOOP_DEVICE);
  lvm('lvcreate', '-q', '-y', '-L', '96M', '--thinpool', 'pool', 'lab');
  lvm('lvcreate', '-q', '-y', '-V', `${DISK_MIB}M`, '--thin', '-n', 'guest', 'lab/pool');
}

/** A disk of zeros, left alone when it is there. */
function makeLoopDevice(): void {
  const file = '/tmp/guest-disk.img';
  if (existsSync(file)) return;
  execFileSync('truncate', ['-s', `${DISK_MIB}M`, file]);
  // Busybox': it made the list of modules.
  execFileSync('/lab/bin/modprobe', ['loop']);
  execFileSync('/lab/bin/losetup', [LOOP_DEVICE, file]);
}

/** Keeps packets going to the guest and back. @returns what ends it */
export function startTraffic(): () => void {
  const child = spawn('ping', ['-i', '0.05', '-s', '1400', '-q', GUEST_ADDRESS], { stdio: 'ignore' });
  return () => child.kill('SIGKILL');
}

/** Whether the guest answers within half a minute. */
export async function answersPing(): Promise<boolean> {
  for (let i = 0; i < 15; i++) {
    if (spawnSync('ping', ['-c', '1', '-W', '2', GUEST_ADDRESS]).status === 0) return true;
    await sleep(200);
  }
  return false;
}
