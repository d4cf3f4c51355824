/**
 * A connection to QEMU's monitor that outlives all of Cairn's processes: QEMU itself is given our end of it.
 *
 *     Cairn ==== connection ==== monitor of QEMU
 *       `--- getfd: QEMU holds our end, too ---^        later: pidfd_getfd, by whichever Cairn needs it
 *
 * A new connection would not do. Before it may carry commands out of band, QEMU's main loop has to agree, and that loop
 * may be the one that waits for a page which a page server that has ended owes. While it is parked, nobody else gets to
 * this monitor. Source: docs/interop/qmp-spec, monitor/qmp.c (7.2 to 10.0).
 */

import { closeSync, fstatSync } from 'node:fs';
import { readdir, readlink } from 'node:fs/promises';

import { CheckpointError } from '../../../../src/errors.js';
import { duplicateOf } from '../../../../src/ffi/foreign-descriptor.js';
import { QmpClient } from '../../../qemu/qmp-client.js';

/** Of the connection, among those that QEMU's monitor was given. */
const PARKED_NAME = 'cairn-monitor';

/** Until `unpark`. @returns inode of our end, by which it is found */
export async function park(monitor: QmpClient): Promise<number> {
  await monitor.execute('getfd', { fdname: PARKED_NAME }, { passDescriptor: monitor.descriptor });
  return fstatSync(monitor.descriptor).ino;
}

/** Whether it could be borrowed, without reading anything of it. @throws as `borrow` */
export async function checkParked(pid: number, inode: number, path: string): Promise<void> {
  closeSync(await parkedDescriptor(pid, inode, path));
}

/**
 * The connection, to be left with `leave`, or ended with `unpark`. One process reads it at a time.
 * @throws VM_GONE, VM_PERMISSION
 */
export async function borrow(pid: number, inode: number, path: string): Promise<QmpClient> {
  return QmpClient.takeOver(path, await parkedDescriptor(pid, inode, path));
}

async function parkedDescriptor(pid: number, inode: number, path: string): Promise<number> {
  const descriptor = await descriptorOfSocket(pid, inode);
  const found = descriptor === undefined ? undefined : duplicateOf(pid, descriptor);
  if (found?.descriptor !== undefined) return found.descriptor;
  if (found === undefined || found.error === 'ESRCH') {
    throw new CheckpointError(
      'VM_GONE',
      `process ${pid} has ended, or has let go of Cairn's connection to ${path}`,
    );
  }
  throw new CheckpointError(
    'VM_PERMISSION',
    `the connection that QEMU keeps for Cairn cannot be shared (${found.error})`,
    { hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE' },
  );
}

/** Ends it: the monitor is free for others from here on. */
export async function unpark(monitor: QmpClient): Promise<void> {
  try {
    await monitor.execute('closefd', { fdname: PARKED_NAME });
  } finally {
    await monitor.close();
  }
}

async function descriptorOfSocket(pid: number, inode: number): Promise<number | undefined> {
  const folder = `/proc/${pid}/fd`;
  for (const name of await readdir(folder).catch(() => [])) {
    const target = await readlink(`${folder}/${name}`).catch(() => '');
    if (target === `socket:[${inode}]`) return Number(name);
  }
  return undefined;
}
