/**
 * Names of unfinished files, and their removal once their writer is gone.
 *
 * The name starts with "~", which no key contains, so an unfinished file can never be taken for an object. It
 * carries its writer, so that another process can tell a leftover from work in progress, and from a file of
 * somebody else:
 *
 *     ~<host>-<boot>-<pid namespace>-<pid>-<start time>-<random>
 *
 * The first three are written as 8 hex digits of a SHA-256, the last as 12. A file is removed in two cases
 * only, and never because of its age, which clocks that differ or jump would make up:
 *
 *     its process was one of this boot, and has ended       removeLeftovers, by whoever writes to the folder
 *     nobody but the caller may write to the folder now     removeAll, by the owner of the chain's lock
 */

import { createHash, randomBytes } from 'node:crypto';
import { lstat, readdir, realpath, rm } from 'node:fs/promises';
import { join, sep } from 'node:path';

import { systemErrorCode } from '../errors.js';
import { isCertainlyGone, thisProcess } from '../host/process-owner.js';

const NAME = /^~([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-([1-9]\d{0,9})-([1-9]\d{0,19})-[0-9a-f]{12}$/;

export function newTempName(): string {
  const { pid, startTime } = thisProcess();
  const { host, boot, namespace } = labels();
  return `~${host}-${boot}-${namespace}-${pid}-${startTime}-${randomBytes(6).toString('hex')}`;
}

/** Whether a file of this name is one that Cairn has left unfinished, or is writing. */
export function isTempName(name: string): boolean {
  return NAME.test(name);
}

/**
 * Removes from one folder what ended processes left. Best effort: what cannot be removed stays, it is never
 * listed.
 */
export async function removeLeftovers(folder: string, root: string): Promise<void> {
  // Somebody else has removed one, or it is not ours to remove.
  await removeWhere(folder, root, isLeftover).catch(() => 0);
}

/**
 * Removes every unfinished file from one folder but those of `own`, whoever is writing it.
 * @param own paths
 * @returns how many were removed; 0 when there is no such folder
 */
export function removeAll(folder: string, root: string, own: ReadonlySet<string>): Promise<number> {
  return removeWhere(folder, root, (name) => !own.has(join(folder, name)));
}

async function removeWhere(folder: string, root: string, isToGo: (name: string) => boolean): Promise<number> {
  const names = (await namesIn(folder)).filter((name) => isTempName(name) && isToGo(name));
  // A link in the place of a folder may lead to files of somebody else.
  if (names.length === 0 || !(await isBelow(folder, root))) return 0;
  let removed = 0;
  for (const name of names) {
    const path = join(folder, name);
    const found = await lstat(path).catch(() => undefined);
    if (found?.isFile() !== true) continue;
    await rm(path, { force: true });
    removed++;
  }
  return removed;
}

function namesIn(folder: string): Promise<readonly string[]> {
  return readdir(folder).catch((error: unknown) => {
    if (systemErrorCode(error) === 'ENOENT' || systemErrorCode(error) === 'ENOTDIR') return [];
    throw error;
  });
}

async function isBelow(folder: string, root: string): Promise<boolean> {
  const [inner, outer] = await Promise.all([realpath(folder), realpath(root)]);
  return inner === outer || inner.startsWith(outer.endsWith(sep) ? outer : `${outer}${sep}`);
}

function isLeftover(name: string): boolean {
  const [, host, boot, namespace, pid, startTime] = NAME.exec(name)!;
  const here = thisProcess();
  const mine = labels();
  if (host !== mine.host || boot !== mine.boot || namespace !== mine.namespace) return false;
  return isCertainlyGone({ ...here, pid: Number(pid), startTime: startTime! });
}

function labels(): { readonly host: string; readonly boot: string; readonly namespace: string } {
  const { machineId, hostName, bootId, pidNamespace } = thisProcess();
  return { host: label(`${machineId} ${hostName}`), boot: label(bootId), namespace: label(pidNamespace) };
}

function label(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 8);
}
