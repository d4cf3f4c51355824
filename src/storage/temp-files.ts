/**
 * Names of unfinished files, and their removal once their writer is gone.
 *
 * The name starts with "~", which no key contains, so an unfinished file can never be taken for an object. It
 * carries its writer, so that another process can tell a leftover from work in progress:
 *
 *     ~<host>-<boot>-<pid namespace>-<pid>-<start time>-<random>
 *
 * The first three are written as 8 hex digits of a SHA-256.
 */

import { createHash, randomBytes } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { isCertainlyGone, thisProcess } from '../host/process-owner.js';

const PREFIX = '~';
/** A writer whose fate cannot be known counts as gone when it has not touched its file for that long. */
const ABANDONED_AFTER_MS = 24 * 60 * 60 * 1000;

export function newTempName(): string {
  const { pid, startTime } = thisProcess();
  const { host, boot, namespace } = labels();
  return `${PREFIX}${host}-${boot}-${namespace}-${pid}-${startTime}-${randomBytes(6).toString('hex')}`;
}

/** Removes leftovers in one folder. Best effort: what cannot be removed stays, it is never listed. */
export async function removeLeftovers(folder: string): Promise<void> {
  const names = (await readdir(folder)).filter((name) => name.startsWith(PREFIX));
  for (const name of names) {
    const path = join(folder, name);
    try {
      if (isLeftover(name) || Date.now() - (await stat(path)).mtimeMs > ABANDONED_AFTER_MS)
        await rm(path, { force: true });
    } catch {
      // Somebody else has removed it, or it is not ours to remove.
    }
  }
}

function isLeftover(name: string): boolean {
  const [host, boot, namespace, pid, startTime] = name.slice(PREFIX.length).split('-');
  const here = thisProcess();
  const mine = labels();
  if (host !== mine.host) return false;
  return isCertainlyGone({
    bootId: boot === mine.boot ? here.bootId : '',
    machineId: here.machineId,
    hostName: here.hostName,
    pidNamespace: namespace === mine.namespace ? here.pidNamespace : '',
    pid: Number(pid),
    startTime: startTime ?? '',
  });
}

function labels(): { readonly host: string; readonly boot: string; readonly namespace: string } {
  const { machineId, hostName, bootId, pidNamespace } = thisProcess();
  return { host: label(`${machineId} ${hostName}`), boot: label(bootId), namespace: label(pidNamespace) };
}

function label(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 8);
}
