/**
 * Whether the sockets that a command line opens are in use. QEMU takes over a socket path by unlinking it,
 * without a look at what it is or who listens there: a restore beside the live VM would steal its monitor, and
 * one with a wrong path would remove a file.
 */

import { lstat, readdir, readFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import { peerPid } from '../../qemu/peer-process.js';
import { descriptorOf } from '../../../src/host/socket-descriptor.js';
import { splitValue, unescapeCommas, type QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn } from '../../disks/qcow2/option-fields.js';

const DYING_TIMEOUT_MS = 10_000;
const POLL_MS = 10;

/** @throws RESTORE_TARGET_BUSY */
export async function checkSocketsFree(
  options: readonly QemuOption[],
  cwd: string,
  qmpPath: string,
): Promise<void> {
  if (await isServed(qmpPath)) {
    throw new CheckpointError('RESTORE_TARGET_BUSY', `a running process answers on ${qmpPath}`, {
      hint: 'stop that VM first, or give the new one a socket of its own with --qmp PATH',
      detail: { path: qmpPath },
    });
  }
  const paths = serverPaths(options, cwd);
  for (const path of [qmpPath, ...paths]) {
    if (await isFreeForSocket(path)) continue;
    throw new CheckpointError(
      'RESTORE_TARGET_BUSY',
      `${path} is there and is no socket: QEMU would remove it`,
      {
        hint: 'name another path with --qmp PATH or --set-arg, or move what is there',
        detail: { path },
      },
    );
  }
  const listening = await listeningPaths();
  const taken = paths.find((path) => listening.has(path));
  if (taken === undefined) return;
  throw new CheckpointError(
    'RESTORE_TARGET_BUSY',
    `a running process listens on ${taken}, which the VM would open too`,
    {
      hint: 'stop that VM first, or give the new one other sockets with --set-arg',
      detail: { path: taken },
    },
  );
}

/** Whether nothing is there, or a socket that nobody needs any more. */
export async function isFreeForSocket(path: string): Promise<boolean> {
  try {
    return (await lstat(path)).isSocket();
  } catch {
    // Nothing is there, or QEMU will say what is wrong with the path.
    return true;
  }
}

/** Absolute paths of all unix sockets that the command line has QEMU listen on. */
export function serverPaths(options: readonly QemuOption[], cwd: string): string[] {
  return options.flatMap(({ name, value = '' }) => {
    const parts = splitValue(value);
    const serves = name === 'vnc' || isOn(value, 'server');
    if (!serves) return [];
    const unix = parts
      .map((part) => /^(?:mon:)?unix:(.+)$/s.exec(part)?.[1])
      .find((path) => path !== undefined);
    const path =
      unix === undefined ? (fieldOf(value, 'path') ?? fieldOf(value, 'addr.path')) : unescapeCommas(unix);
    return path === undefined || path === '' ? [] : [resolve(cwd, path)];
  });
}

/**
 * Paths on which sockets of this network namespace listen. Columns: Num RefCount Protocol Flags Type St Inode
 * Path; 00010000 is SO_ACCEPTCON.
 */
async function listeningPaths(): Promise<ReadonlySet<string>> {
  const table = await readFile('/proc/net/unix', 'utf8').catch(() => '');
  const rows = table.split('\n').map((line) => /^\S+ \S+ \S+ (\S+) \S+ \S+ +\d+ (\/.*)$/.exec(line));
  return new Set(rows.flatMap((row) => (row?.[1] === '00010000' ? [row[2]!] : [])));
}

/**
 * A killed QEMU is gone for whoever killed it when its main thread has ended, but keeps its sockets and disks
 * until the last of its threads has: with much memory to give back, for a while. Such a process is waited
 * for.
 */
async function isServed(path: string): Promise<boolean> {
  const deadlineMs = Date.now() + DYING_TIMEOUT_MS;
  for (;;) {
    const pid = await listenerOf(path);
    if (pid === undefined) return false;
    if (pid === 0 || !(await isDying(pid)) || Date.now() > deadlineMs) return true;
    while (Date.now() < deadlineMs && (await threadCount(pid)) > 1) await delay(POLL_MS);
  }
}

/** The main thread has ended: state Z or X in /proc/PID/stat (proc(5)), or no such process any more. */
async function isDying(pid: number): Promise<boolean> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1');
    return /^[ZX]$/.test(stat.charAt(stat.lastIndexOf(')') + 2));
  } catch (error) {
    return systemErrorCode(error) === 'ENOENT' || systemErrorCode(error) === 'ESRCH';
  }
}

async function threadCount(pid: number): Promise<number> {
  return (await readdir(`/proc/${pid}/task`).catch(() => [])).length;
}

/** Process that listens on `path`, 0 when it cannot be seen from here, undefined when nobody does. */
function listenerOf(path: string): Promise<number | undefined> {
  return new Promise((done) => {
    const socket = createConnection({ path });
    socket.once('connect', () => {
      const pid = peerPid(descriptorOf(socket));
      socket.destroy();
      done(pid);
    });
    // A full queue of waiting clients is an answer too.
    socket.once('error', (error) => done(systemErrorCode(error) === 'EAGAIN' ? 0 : undefined));
  });
}
