/**
 * What a command line has QEMU take of the host: files that it writes, memory that lies in files, addresses that it binds,
 * devices. A second QEMU with the same ones would share them with the first.
 *
 * Sources: qemu-options.hx, qapi/net.json, qapi/sockets.json and qapi/qom.json of QEMU 7.2 and 10.0.
 */

import { resolve } from 'node:path';

import { splitValue, unescapeCommas, type QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn } from '../../disks/qcow2/option-fields.js';
import { isLocalPath } from '../../qemu/image-names.js';
import { diskReferences } from '../../disks/qcow2/restore-disk-options.js';

export type Claim = { readonly option: string } & (
  | { readonly kind: 'file' | 'memory' | 'private-memory' | 'datagrams' | 'back-end'; readonly path: string }
  | { readonly kind: 'tcp' | 'udp'; readonly host: string; readonly port: number }
  | { readonly kind: 'tap'; readonly name: string }
);

/** @param cwd what relative paths start from */
export function claimsOf(options: readonly QemuOption[], cwd: string): readonly Claim[] {
  const exclusive = exclusiveChardevs(options);
  const disks = diskReferences(options, cwd).filter(({ at }) => isWritten(options, at));
  return options.flatMap((each, at) => {
    const option = `${each.spelling} ${each.value ?? ''}`.trim();
    const path = (kind: 'file' | 'memory' | 'private-memory' | 'datagrams' | 'back-end', name?: string) =>
      name === undefined || name === '' ? [] : [{ option, kind, path: resolve(cwd, name) }];
    const named = disks
      .filter((disk) => disk.at === at && isLocalPath(disk.path))
      .flatMap((disk) => path('file', disk.path));
    return [
      ...named,
      ...memoryOf(each).flatMap(({ kind, name }) => path(kind, name)),
      ...writtenFiles(each).flatMap((name) => path('file', name)),
      ...(each.name === 'netdev' ? path('datagrams', datagramPath(each.value ?? '')) : []),
      ...(each.name === 'chardev' && exclusive.has(fieldOf(each.value ?? '', 'id') ?? '')
        ? path('back-end', fieldOf(each.value ?? '', 'path'))
        : []),
      ...portsOf(each).map((port) => ({ option, ...port })),
      ...tapOf(each).map((name) => ({ option, kind: 'tap' as const, name })),
    ];
  });
}

/** Whether the guest may write to the disk that this option names. */
function isWritten(options: readonly QemuOption[], at: number): boolean {
  if (options.some(({ name }) => name === 'snapshot')) return false;
  const { name, value = '' } = options[at]!;
  if (name === 'cdrom' || name === 'fda' || name === 'fdb') return false;
  if (name !== 'drive' && name !== 'blockdev') return true;
  const isReadOnly = isOn(value, 'readonly') || isOn(value, 'read-only') || isOn(value, 'snapshot');
  return !isReadOnly && fieldOf(value, 'media') !== 'cdrom';
}

function memoryOf({ name, value = '' }: QemuOption): readonly {
  readonly kind: 'memory' | 'private-memory';
  readonly name: string | undefined;
}[] {
  if (name === 'mem-path') return [{ kind: 'private-memory', name: value }];
  if (name !== 'object' || fieldOf(value, 'qom-type', 'qom-type') !== 'memory-backend-file') return [];
  // What it discards at its end is gone for whoever has the file mapped, too.
  const reaches = isOn(value, 'share') || isOn(value, 'discard-data');
  return [{ kind: reaches ? 'memory' : 'private-memory', name: fieldOf(value, 'mem-path') }];
}

/** Logs that are only added to may have several writers. */
function writtenFiles({ name, value = '' }: QemuOption): readonly (string | undefined)[] {
  switch (name) {
    case 'pidfile':
    case 'D':
      return [value];
    case 'serial':
    case 'parallel':
    case 'monitor':
    case 'debugcon':
      return value.startsWith('file:') ? [value.slice('file:'.length)] : [];
    case 'chardev':
      return [
        fieldOf(value, 'backend', 'backend') === 'file' && !isOn(value, 'append')
          ? fieldOf(value, 'path')
          : undefined,
        isOn(value, 'logappend') ? undefined : fieldOf(value, 'logfile'),
      ];
    default:
      return [];
  }
}

/** Character devices that lead to a process which serves one VM: swtpm, a vhost-user back end. */
function exclusiveChardevs(options: readonly QemuOption[]): ReadonlySet<string> {
  return new Set(
    options.flatMap(({ name, value = '' }) => {
      const type = fieldOf(value, 'type', 'type') ?? '';
      const driver = fieldOf(value, 'driver', 'driver') ?? '';
      const serves =
        name === 'tpmdev' ||
        (name === 'netdev' && type === 'vhost-user') ||
        (name === 'device' && driver.startsWith('vhost-user'));
      return serves ? [fieldOf(value, 'chardev') ?? ''] : [];
    }),
  );
}

/** `-netdev dgram` unlinks what is at its path. */
function datagramPath(value: string): string | undefined {
  const isDatagram = fieldOf(value, 'type', 'type') === 'dgram' && fieldOf(value, 'local.type') === 'unix';
  return isDatagram ? fieldOf(value, 'local.path') : undefined;
}

interface Port {
  readonly kind: 'tcp' | 'udp';
  readonly host: string;
  readonly port: number;
}

function portsOf({ name, value = '' }: QemuOption): readonly Port[] {
  switch (name) {
    case 's':
      return [{ kind: 'tcp', host: '', port: 1234 }];
    case 'vnc':
    case 'display': {
      const display = name === 'vnc' ? value : (fieldOf(value, 'vnc') ?? '');
      const [, host = '', screen] = /^([^,]*):(\d+)(?:,|$)/.exec(display) ?? [];
      if (screen === undefined || display.startsWith('unix:') || looksFurther(value)) return [];
      return [{ kind: 'tcp', host, port: 5900 + Number(screen) }];
    }
    case 'spice':
      return isOn(value, 'unix')
        ? []
        : ['port', 'tls-port'].flatMap((key) => portAt('tcp', fieldOf(value, 'addr'), fieldOf(value, key)));
    case 'qmp':
    case 'monitor':
    case 'serial':
    case 'parallel':
    case 'gdb': {
      const [, host = '', port] = /^(?:mon:)?(?:tcp|telnet|websocket):([^,]*):(\d+)/.exec(value) ?? [];
      return (name === 'gdb' || isOn(value, 'server')) && !looksFurther(value)
        ? portAt('tcp', host, port)
        : [];
    }
    case 'chardev':
      return isOn(value, 'server') && !looksFurther(value)
        ? portAt('tcp', fieldOf(value, 'host'), fieldOf(value, 'port'))
        : [];
    case 'netdev':
    case 'nic':
      return netPorts(value);
    default:
      return [];
  }
}

/** With `to` QEMU takes the next port that is free. */
function looksFurther(value: string): boolean {
  return fieldOf(value, 'to') !== undefined;
}

function netPorts(value: string): readonly Port[] {
  const type = fieldOf(value, 'type', 'type');
  const at = (kind: Port['kind'], text: string | undefined): readonly Port[] => {
    const [, host, port] = /^(.*):(\d+)$/.exec(text ?? '') ?? [];
    return portAt(kind, host, port);
  };
  if (type === 'socket') {
    return [
      ...at('tcp', fieldOf(value, 'listen')),
      ...(fieldOf(value, 'mcast') === undefined ? at('udp', fieldOf(value, 'localaddr')) : []),
    ];
  }
  if (type === 'stream' && isOn(value, 'server') && fieldOf(value, 'addr.type') === 'inet')
    return portAt('tcp', fieldOf(value, 'addr.host'), fieldOf(value, 'addr.port'));
  if (type === 'dgram' && fieldOf(value, 'local.type') === 'inet' && fieldOf(value, 'remote.type') === 'inet')
    return portAt('udp', fieldOf(value, 'local.host'), fieldOf(value, 'local.port'));
  if (type !== 'user') return [];
  return splitValue(value).flatMap((part) => {
    const [, kind, host, port] = /^hostfwd=(tcp|udp)?:([^:]*):(\d+)-/.exec(unescapeCommas(part)) ?? [];
    return port === undefined ? [] : portAt(kind === 'udp' ? 'udp' : 'tcp', host, port);
  });
}

function portAt(kind: Port['kind'], host = '', port = ''): readonly Port[] {
  const number = Number(port);
  // Port 0 is any that is free.
  return Number.isInteger(number) && number > 0 && number < 65536 ? [{ kind, host, port: number }] : [];
}

function tapOf({ name, value = '' }: QemuOption): readonly string[] {
  const isTap = (name === 'netdev' || name === 'nic') && fieldOf(value, 'type', 'type') === 'tap';
  const device = isTap ? fieldOf(value, 'ifname') : undefined;
  return device === undefined || device.includes('%') ? [] : [device];
}
