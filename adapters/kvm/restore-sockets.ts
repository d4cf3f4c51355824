/**
 * Whether the sockets that a command line opens are in use. QEMU takes over a socket path by unlinking it, without a look
 * at who listens there: a restore beside the live VM would steal its monitor.
 */

import { readFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { resolve } from 'node:path';

import { CheckpointError, systemErrorCode } from '../../src/errors.js';
import { splitValue, unescapeCommas, valueOf, type QemuOption } from './restore-command-line.js';

/** @throws RESTORE_TARGET_BUSY */
export async function checkSocketsFree(
  options: readonly QemuOption[],
  cwd: string,
  qmpPath: string,
): Promise<void> {
  if (await answers(qmpPath)) {
    throw new CheckpointError('RESTORE_TARGET_BUSY', `a running process answers on ${qmpPath}`, {
      hint: 'stop that VM first, or give the new one a socket of its own with --qmp PATH',
      detail: { path: qmpPath },
    });
  }
  const listening = await listeningPaths();
  const taken = serverPaths(options, cwd).find((path) => listening.has(path));
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

/** Absolute paths of all unix sockets that the command line has QEMU listen on. */
export function serverPaths(options: readonly QemuOption[], cwd: string): string[] {
  return options.flatMap(({ name, value = '' }) => {
    const parts = splitValue(value);
    const serves = name === 'vnc' || parts.some((part) => /^server(=on|=yes)?$/.test(part));
    if (!serves) return [];
    const unix = parts
      .map((part) => /^(?:mon:)?unix:(.+)$/s.exec(part)?.[1])
      .find((path) => path !== undefined);
    const path = unix === undefined ? valueOf(value, 'path') : unescapeCommas(unix);
    return path === undefined || path === '' ? [] : [resolve(cwd, path)];
  });
}

/** Of this network namespace. Columns: Num RefCount Protocol Flags Type St Inode Path; 00010000 is SO_ACCEPTCON. */
async function listeningPaths(): Promise<ReadonlySet<string>> {
  const table = await readFile('/proc/net/unix', 'utf8').catch(() => '');
  const rows = table.split('\n').map((line) => /^\S+ \S+ \S+ (\S+) \S+ \S+ +\d+ (\/.*)$/.exec(line));
  return new Set(rows.flatMap((row) => (row?.[1] === '00010000' ? [row[2]!] : [])));
}

function answers(path: string): Promise<boolean> {
  return new Promise((done) => {
    const socket = createConnection({ path });
    socket.once('connect', () => {
      socket.destroy();
      done(true);
    });
    // A full queue of waiting clients is an answer too.
    socket.once('error', (error) => done(systemErrorCode(error) === 'EAGAIN'));
  });
}
