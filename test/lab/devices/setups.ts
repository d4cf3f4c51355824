/**
 * How each device is added to the lab's guest: the machine it needs, its back end, its properties. A device
 * that no rule names is added by its name alone.
 */

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { OfferedDevice } from './listing.js';

export interface DeviceSetup {
  /** Tried in this order; the first one that starts with the device is used. */
  readonly machines: readonly string[];
  readonly args: readonly string[];
  /** Starts a process that the device talks to, before the first QEMU and again before a restored one. */
  readonly startBackEnd?: (dir: string) => Promise<BackEnd>;
}

export interface BackEnd {
  end(): void;
}

export interface NoSetup {
  readonly whyNot: string;
}

const ID = 'dut';
const ANY_MACHINE = ['pc', 'q35'];
const VIRTIOFSD = '/usr/lib/qemu/virtiofsd';
const STORAGE_DAEMON = '/usr/bin/qemu-storage-daemon';
/** A disk without a file: what is stored of a disk is for other tests. */
const DISK = ['-blockdev', 'driver=null-co,node-name=disk0,size=16777216,read-zeroes=on'];
const NETDEV = ['-netdev', 'user,id=net0,restrict=on'];
const AUDIODEV = ['-audiodev', 'none,id=audio0'];
const CHARDEV = ['-chardev', 'null,id=char0'];
const SHARED_MEMORY = [
  '-object',
  'memory-backend-memfd,id=shared0,size=128M,share=on',
  '-machine',
  'memory-backend=shared0',
];

type Rule = readonly [name: RegExp, setup: (device: OfferedDevice, dir: string) => DeviceSetup | NoSetup];

export function setupOf(device: OfferedDevice, dir: string): DeviceSetup | NoSetup {
  const rule = RULES.find(([name]) => name.test(device.name));
  if (rule !== undefined) return rule[1](device, dir);
  return added([...busOf(device)], device.name);
}

function added(
  before: readonly string[],
  device: string,
  machines: readonly string[] = ANY_MACHINE,
): DeviceSetup {
  return { machines, args: [...before, '-device', withId(device)] };
}

/** NAME,a=b becomes NAME,id=dut,a=b. */
function withId(device: string): string {
  return device.replace(/^[^,]+/, `$&,id=${ID}`);
}

/** The same with ids of its own, to be started together with others. */
export function withSuffix(setup: DeviceSetup, index: number): DeviceSetup {
  const ids =
    /\b(dut|(?:disk|net|audio|char|mem|fs|crypto|can|bmc|usb|scsi|serial|hda|sd|ccid|port|up|nvme|subsys|switch)\d)\b/g;
  return { ...setup, args: setup.args.map((arg) => arg.replace(ids, `$1x${index}`)) };
}

const no = (whyNot: string) => (): NoSetup => ({ whyNot });

/** A rule for devices that need properties, and perhaps something before them. */
const needs =
  (properties: string, ...before: readonly string[]) =>
  (device: OfferedDevice): DeviceSetup =>
    added([...busOf(device), ...before], `${device.name},${properties}`);

/** What has to be there for a device to be plugged into. */
function busOf({ bus }: OfferedDevice): readonly string[] {
  switch (bus) {
    case 'usb-bus':
      return ['-device', 'qemu-xhci,id=usb0'];
    case 'SCSI':
      return ['-device', 'virtio-scsi-pci,id=scsi0'];
    case 'virtio-serial-bus':
      return ['-device', 'virtio-serial-pci,id=serial0'];
    case 'HDA':
      return ['-device', 'intel-hda,id=hda0'];
    case 'sd-bus':
      return ['-device', 'sdhci-pci,id=sd0'];
    case 'ccid-bus':
      return ['-device', 'qemu-xhci,id=usb0', '-device', 'usb-ccid,id=ccid0'];
    default:
      return [];
  }
}

const PCIE_PORT = ['-device', 'pcie-root-port,id=port0,chassis=1,slot=1'];
const Q35 = ['q35'];

const RULES: readonly Rule[] = [
  [/-cpu$/, no('a model of CPU: the guest has the one that -cpu names')],
  [/^vfio-|^vhost-vdpa|^pci-assign/, no('needs a device of the host (VFIO)')],
  [/^xen-/, no('needs Xen')],
  [/^(scsi-block|scsi-generic)$/, no('needs a SCSI device of the host')],
  [/^virtio-input-host/, no('needs an input device of the host')],
  [/^vhost-(vsock|scsi)/, no('needs the vhost of the host kernel')],
  [/^tpm-/, no('needs swtpm: tried with libvirt, test/lab/libvirt-hardware.test.ts')],
  [/^(u2f-|canokey|usb-smartcard)/, no('needs a key or its emulator')],
  [/^ivshmem-doorbell$/, no('needs an ivshmem server')],
  [/^x-pci-proxy-dev|^x-remote/, no('needs another QEMU')],
  [/^(sgx|sev|tdx)/, no('needs such a CPU')],

  [
    /^vhost-user-fs-pci$/,
    (device, dir) => ({
      ...added(
        [...SHARED_MEMORY, '-chardev', `socket,id=back0,path=${join(dir, 'back.sock')}`],
        `${device.name},chardev=back0,tag=share`,
      ),
      startBackEnd: startVirtiofsd,
    }),
  ],
  [
    /^vhost-user-blk-pci(-|$)/,
    (device, dir) => ({
      ...added(
        [...SHARED_MEMORY, '-chardev', `socket,id=back0,path=${join(dir, 'back.sock')}`],
        `${device.name},chardev=back0`,
      ),
      startBackEnd: startStorageDaemon,
    }),
  ],
  [/^vhost-user-/, no('needs a back end of its own (vhost-user)')],

  [
    /^virtio-9p-pci/,
    (device, dir) => {
      mkdirSync(join(dir, 'share'), { recursive: true });
      return added(
        ['-fsdev', `local,id=fs0,path=${join(dir, 'share')},security_model=none`],
        `${device.name},fsdev=fs0,mount_tag=share`,
      );
    },
  ],
  [/^usb-mtp$/, (device, dir) => added(busOf(device), `${device.name},rootdir=${dir}`)],
  [/^virtio-crypto-pci/, needs('cryptodev=crypto0', '-object', 'cryptodev-backend-builtin,id=crypto0')],
  [
    /^virtio-pmem-pci/,
    needs('memdev=mem0', ...slots(), '-object', 'memory-backend-ram,id=mem0,size=16M,share=on'),
  ],
  [/^virtio-mem-pci/, needs('memdev=mem0', ...slots(), '-object', 'memory-backend-ram,id=mem0,size=128M')],
  [/^pc-dimm$/, needs('memdev=mem0', ...slots(), '-object', 'memory-backend-ram,id=mem0,size=128M')],
  [
    /^nvdimm$/,
    (device) =>
      added(
        [...slots(), '-machine', 'nvdimm=on', '-object', 'memory-backend-ram,id=mem0,size=128M'],
        `${device.name},memdev=mem0`,
      ),
  ],
  [/^acpi-erst$/, needs('memdev=mem0', '-object', 'memory-backend-ram,id=mem0,size=64K,share=on')],
  [/^hv-syndbg$/, needs('host_port=0', '-device', 'vmbus-bridge,id=vmbus0')],
  [/^ivshmem-plain$/, needs('memdev=mem0', '-object', 'memory-backend-ram,id=mem0,size=1M,share=on')],

  [/^nvme$/, needs(`serial=1,drive=disk0`, ...DISK)],
  [/^nvme-ns$/, needs('drive=disk0', ...DISK, '-device', 'nvme,id=nvme0,serial=1')],
  [/^nvme-subsys$/, needs('nqn=subsys0')],
  [
    /^usb-(uas|bot)$/,
    (device) => ({
      machines: ANY_MACHINE,
      args: [
        ...[...busOf(device), ...DISK, '-device', withId(device.name)],
        ...['-device', `scsi-hd,bus=${ID}.0,drive=disk0`],
      ],
    }),
  ],
  [
    /^(virtio-blk-pci(-.*)?|ide-hd|ide-cf|scsi-hd|scsi-disk|usb-storage|floppy|sd-card|emmc|ufs-lu)$/,
    needs('drive=disk0', ...DISK),
  ],
  [
    /^virtio-net-pci|^e1000|^i825|^igb$|^rtl8139|^ne2k_|^pcnet|^vmxnet3|^tulip|^usb-net$/,
    needs('netdev=net0', ...NETDEV),
  ],
  [
    /^(AC97|ES1370|ENS1370|sb16|cs4231a|adlib|gus|virtio-sound-pci|usb-audio)$/,
    needs('audiodev=audio0', ...AUDIODEV),
  ],
  [/^hda-/, needs('audiodev=audio0', ...AUDIODEV)],
  [
    /^(virtconsole|virtserialport|isa-serial|isa-parallel|isa-debugcon|pci-serial|usb-serial|usb-redir|ccid-card-passthru)$/,
    needs('chardev=char0', ...CHARDEV),
  ],
  [/^usb-braille$/, no('needs a Braille display')],
  [/^ccid-card-emulated$/, no('needs a smart card')],
  [
    /^pci-serial-(\d)x$/,
    (device) => {
      const ports = Number(/-(\d)x$/.exec(device.name)?.[1]);
      const numbers = Array.from({ length: ports }, (_, i) => i + 1);
      return added(
        numbers.flatMap((n) => ['-chardev', `null,id=char${n}`]),
        `${device.name},${numbers.map((n) => `chardev${n}=char${n}`).join(',')}`,
      );
    },
  ],
  [/^(isa|pci|smbus)-ipmi/, needs('bmc=bmc0', '-device', 'ipmi-bmc-sim,id=bmc0')],
  [/^ipmi-bmc-extern$/, needs('chardev=char0', ...CHARDEV)],
  [/^(kvaser_pci)$/, needs('canbus=can0', '-object', 'can-bus,id=can0')],
  [
    /^(mioe3680_pci|pcm3680_pci|ctucan_pci)$/,
    needs('canbus0=can0,canbus1=can0', '-object', 'can-bus,id=can0'),
  ],

  [/^(intel-iommu|amd-iommu|virtio-iommu-pci)$/, ({ name }) => added([], name, Q35)],
  [/^(pci-bridge|pci-bridge-seat)$/, needs('chassis_nr=1')],
  [/^(pcie-root-port|ioh3420)$/, ({ name }) => added([], `${name},chassis=1,slot=1`, Q35)],
  [/^(pcie-pci-bridge|dmi-to-pci-bridge|i82801b11-bridge)$/, ({ name }) => added([], name, Q35)],
  [/^(pxb|pxb-pcie|pxb-host|pxb-cxl)$/, needs('bus_nr=128')],
  [/^x3130-upstream$/, ({ name }) => added(PCIE_PORT, `${name},bus=port0`, Q35)],
  [
    /^xio3130-downstream$/,
    ({ name }) =>
      added(
        [...PCIE_PORT, '-device', 'x3130-upstream,id=up0,bus=port0'],
        `${name},bus=up0,chassis=2,slot=2`,
        Q35,
      ),
  ],
  [/^cxl-/, no('needs CXL host bridges and memory windows')],
  [/^loader$/, needs('addr=0x100000,data=0,data-len=1')],
  [/^guest-loader$/, no('for machines that are booted by a device tree')],
  [/^vmgenid$/, needs('guid=auto')],
  [/^isa-applesmc$/, needs('osk=0123456789012345678901234567890123456789012345678901234567890123')],
  [/^rocker$/, needs('name=switch0')],
];

/** Room for memory devices; the guest's own size is in `trial.ts`. */
function slots(): readonly string[] {
  return ['-m', '256,slots=4,maxmem=1G'];
}

/** Root only: it makes itself a namespace. */
export function startVirtiofsd(dir: string): Promise<BackEnd> {
  const share = join(dir, 'share');
  mkdirSync(share, { recursive: true });
  return startBackEnd(dir, VIRTIOFSD, (socket) => [
    ...[`--socket-path=${socket}`, '-o', `source=${share}`, '-o', 'sandbox=chroot'],
  ]);
}

function startStorageDaemon(dir: string): Promise<BackEnd> {
  return startBackEnd(dir, STORAGE_DAEMON, (socket) => [
    ...['--blockdev', 'driver=null-co,node-name=disk0,size=16777216,read-zeroes=on', '--export'],
    `type=vhost-user-blk,id=export0,node-name=disk0,addr.type=unix,addr.path=${socket},writable=on`,
  ]);
}

/** Returns once it listens on back.sock in the folder. */
async function startBackEnd(
  dir: string,
  program: string,
  argsFor: (socket: string) => readonly string[],
): Promise<BackEnd> {
  const socket = join(dir, 'back.sock');
  rmSync(socket, { force: true });
  const daemon = spawn(program, argsFor(socket), { stdio: 'ignore' });
  let failure: Error | undefined;
  daemon.once('error', (error) => {
    failure = error;
  });
  const until = Date.now() + 10_000;
  while (failure === undefined && !existsSync(socket) && Date.now() < until) await sleep(20);
  const end = (): void => {
    daemon.kill('SIGKILL');
  };
  if (existsSync(socket)) return { end };
  end();
  throw new Error(`${program} does not listen on ${socket}`, { cause: failure });
}
