/**
 * What a new QEMU needs on this host and would not find: said by name before it starts, with what to do. QEMU itself
 * ends with the first of them, in words that name neither the checkpoint nor a remedy.
 */

import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn } from '../../disks/qcow2/option-fields.js';
import { claimsOf } from './claims.js';
import { serverPaths } from './sockets.js';
import type { PlannedStart } from './start.js';

/** @throws RESTORE_FAILED naming a folder or a socket that is not there, and the option that moves it */
export async function refuseMissing({ options, cwd, qmpPath }: PlannedStart): Promise<void> {
  if (!(await isFolder(cwd))) throw missing(`the folder in which QEMU was started, ${cwd}`, cwd);
  const written = claimsOf(options, cwd).flatMap((claim) =>
    claim.kind === 'file' || claim.kind === 'datagrams' ? [claim.path] : [],
  );
  for (const path of new Set([qmpPath, ...serverPaths(options, cwd), ...written])) {
    const folder = dirname(path);
    if (!(await isFolder(folder))) throw missing(`the folder of ${path}`, folder);
  }
  for (const { id, path, serves } of servedSockets(options, cwd)) {
    if ((await lookAt(path)) !== undefined) continue;
    throw new CheckpointError('RESTORE_FAILED', `${path} is not there, by which QEMU reaches ${serves}`, {
      hint: `start ${serves} on that socket first, or name another one with --set-arg or --set-path (chardev ${id})`,
      detail: { path },
    });
  }
}

function missing(what: string, folder: string): CheckpointError {
  return new CheckpointError('RESTORE_FAILED', `${what} is not there`, {
    hint: `make it, or say where it lies now with --set-path ${folder}=NEW, which moves everything in it`,
    detail: { path: folder },
  });
}

/** Sockets that somebody else listens on and QEMU connects to as it starts. */
function servedSockets(
  options: readonly QemuOption[],
  cwd: string,
): readonly { readonly id: string; readonly path: string; readonly serves: string }[] {
  return options.flatMap(({ name, value = '' }) => {
    if (name !== 'chardev' || fieldOf(value, 'backend', 'backend') !== 'socket') return [];
    const path = fieldOf(value, 'path');
    // With `reconnect` QEMU starts without it.
    const waits = fieldOf(value, 'reconnect') !== undefined || fieldOf(value, 'reconnect-ms') !== undefined;
    if (path === undefined || isOn(value, 'server') || isOn(value, 'abstract') || waits) return [];
    const id = fieldOf(value, 'id') ?? '';
    return [{ id, path: resolve(cwd, path), serves: serverOf(id, options) }];
  });
}

function serverOf(id: string, options: readonly QemuOption[]): string {
  const user = options.find(({ value = '' }) => fieldOf(value, 'chardev') === id);
  if (user?.name === 'tpmdev') return 'the swtpm of its TPM';
  const driver = user?.value === undefined ? '' : (fieldOf(user.value, 'driver', 'driver') ?? '');
  const isVhost = driver.startsWith('vhost-user') || user?.value?.includes('vhost-user') === true;
  return isVhost
    ? `the vhost-user process of ${user?.spelling ?? ''} ${user?.value ?? ''}`
    : 'another process';
}

function lookAt(path: string): Promise<Stats | undefined> {
  return stat(path).catch(() => undefined);
}

async function isFolder(path: string): Promise<boolean> {
  return (await lookAt(path))?.isDirectory() === true;
}
