/**
 * Whether a process of this host has what a command line would take for a new QEMU. A second VM with it harms the first:
 * it takes over the socket, writes into its memory or its disk, or ends when it finds a lock in its way, half started.
 * The processes are those that this Cairn may look at: all of them as root.
 *
 * Source: proc(5): maps, fd, fdinfo, net/unix, net/tcp, net/udp.
 */

import type { Stats } from 'node:fs';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';

import { CheckpointError } from '../../../src/errors.js';
import { commandLineOf } from '../../../src/host/process-identity.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { claimsOf, type Claim } from './claims.js';

/** In /proc/net/unix: a socket of datagrams; one that is connected; in /proc/net/tcp: one that listens. */
const DATAGRAM_TYPE = '0002';
const CONNECTED_STATE = '03';
const LISTENING_STATE = '0A';
/** Bits of `flags` in /proc/PID/fdinfo, octal: O_WRONLY or O_RDWR. */
const ACCESS_MODE = 0o3;

/** @throws RESTORE_TARGET_BUSY naming what it is, whose, and the option */
export async function refuseNeighbours(options: readonly QemuOption[], cwd: string): Promise<void> {
  for (const claim of claimsOf(options, cwd)) {
    const owner = await ownerOf(claim);
    if (owner === undefined) continue;
    throw new CheckpointError(
      'RESTORE_TARGET_BUSY',
      `${owner}, which the VM would use too (${claim.option})`,
      {
        hint: 'stop that process first, or give the new VM its own with --set-arg or --drop-arg; cairn show prints the recorded command line',
        detail: { argument: claim.option },
      },
    );
  }
}

/** In words: who has it. Undefined when nobody has. */
async function ownerOf(claim: Claim): Promise<string | undefined> {
  switch (claim.kind) {
    case 'file': {
      const pid = await writerOf(claim.path);
      return pid === undefined ? undefined : `${named(pid)} writes to ${claim.path}`;
    }
    case 'memory':
    case 'private-memory': {
      const pid = await mapperOf(claim.path, claim.kind === 'private-memory');
      return pid === undefined ? undefined : `${named(pid)} has its memory in ${claim.path}`;
    }
    case 'datagrams': {
      const isBound = (await unixRows()).some(
        ({ type, path }) => type === DATAGRAM_TYPE && path === claim.path,
      );
      return isBound ? `a running process receives at ${claim.path}` : undefined;
    }
    case 'back-end': {
      const isServing = (await unixRows()).some(
        ({ state, path }) => state === CONNECTED_STATE && path === claim.path,
      );
      return isServing ? `the process that serves ${claim.path} serves another one` : undefined;
    }
    case 'tcp':
    case 'udp':
      return (await isPortTaken(claim.kind, claim.host, claim.port))
        ? `a running process has ${claim.kind} port ${claim.port}`
        : undefined;
    case 'tap': {
      const pid = await tapOwner(claim.name);
      return pid === undefined ? undefined : `${named(pid)} has the network device ${claim.name}`;
    }
  }
}

function named(pid: number): string {
  return `process ${pid} (${commandLineOf(pid)})`;
}

async function otherProcesses(): Promise<readonly number[]> {
  const names = await readdir('/proc');
  return names.map(Number).filter((pid) => Number.isInteger(pid) && pid !== process.pid);
}

/** A process that has the file open for writing. */
async function writerOf(path: string): Promise<number | undefined> {
  const file = await stat(path).catch(() => undefined);
  // A character device such as /dev/null takes what everybody writes.
  if (file === undefined || file.isCharacterDevice()) return undefined;
  const isFile = (open: Stats): boolean =>
    file.isBlockDevice()
      ? open.isBlockDevice() && open.rdev === file.rdev
      : open.dev === file.dev && open.ino === file.ino;
  return findDescriptor(async (pid, number) => {
    const open = await stat(`/proc/${pid}/fd/${number}`).catch(() => undefined);
    if (open === undefined || !isFile(open)) return false;
    const info = await readFile(`/proc/${pid}/fdinfo/${number}`, 'latin1').catch(() => '');
    return (parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? '0', 8) & ACCESS_MODE) !== 0;
  });
}

async function tapOwner(name: string): Promise<number | undefined> {
  return findDescriptor(async (pid, number) => {
    if ((await readlink(`/proc/${pid}/fd/${number}`).catch(() => '')) !== '/dev/net/tun') return false;
    const info = await readFile(`/proc/${pid}/fdinfo/${number}`, 'latin1').catch(() => '');
    return /^iff:\s*(\S+)/m.exec(info)?.[1] === name;
  });
}

async function findDescriptor(
  fits: (pid: number, number: string) => Promise<boolean>,
): Promise<number | undefined> {
  for (const pid of await otherProcesses()) {
    const numbers = await readdir(`/proc/${pid}/fd`).catch(() => []);
    for (const number of numbers) if (await fits(pid, number)) return pid;
  }
  return undefined;
}

/** @param sharedOnly a process that has it privately does not see what we write to it, nor we what it writes */
async function mapperOf(path: string, sharedOnly: boolean): Promise<number | undefined> {
  const file = await stat(path).catch(() => undefined);
  if (file?.isFile() !== true) return undefined;
  for (const pid of await otherProcesses()) {
    const maps = await readFile(`/proc/${pid}/maps`, 'latin1').catch(() => '');
    // Address, permissions, offset, device, inode, path. The device of a file differs from that of stat on btrfs.
    const isMapped = maps.split('\n').some((line) => {
      const [, permissions = '', , , inode, ...name] = line.split(/\s+/);
      if (Number(inode) !== file.ino || (sharedOnly && !permissions.endsWith('s'))) return false;
      return Buffer.from(name.join(' '), 'latin1').toString() === path;
    });
    if (isMapped) return pid;
  }
  return undefined;
}

interface UnixRow {
  readonly type: string;
  readonly state: string;
  readonly path: string;
}

async function unixRows(): Promise<readonly UnixRow[]> {
  const table = await readFile('/proc/net/unix', 'utf8').catch(() => '');
  return table.split('\n').flatMap((line) => {
    const row = /^\S+ \S+ \S+ \S+ (\S+) (\S+) +\d+ (\/.*)$/.exec(line);
    return row === null ? [] : [{ type: row[1]!, state: row[2]!, path: row[3]! }];
  });
}

/** Whether a socket of this network namespace is bound there, or to all addresses, or one of all is asked for. */
async function isPortTaken(kind: 'tcp' | 'udp', host: string, port: number): Promise<boolean> {
  for (const [table, isV6] of [
    [kind, false],
    [`${kind}6`, true],
  ] as const) {
    const rows = await readFile(`/proc/net/${table}`, 'latin1').catch(() => '');
    for (const line of rows.split('\n').slice(1)) {
      const [, local = '', , state] = line.trim().split(/\s+/);
      const [address = '', hexPort = ''] = local.split(':');
      if (parseInt(hexPort, 16) !== port || (kind === 'tcp' && state !== LISTENING_STATE)) continue;
      if (overlaps(host, address, isV6)) return true;
    }
  }
  return false;
}

/** @param bound as in /proc/net/tcp: four bytes in the order of this machine, in hexadecimal */
function overlaps(host: string, bound: string, isV6: boolean): boolean {
  if (/^0+$/.test(bound)) return true;
  const wanted = /^\d+(?:\.\d+){3}$/.exec(host)?.[0];
  // A name, or an address of the newer kind: one of the two may mean the other.
  if (wanted === undefined || isV6) return true;
  if (wanted === '0.0.0.0') return true;
  const bytes = (bound.match(/../g) ?? []).map((byte) => parseInt(byte, 16)).reverse();
  return bytes.join('.') === wanted;
}
