/**
 * Folders for guest memory on its way into a checkpoint, in a folder for temporary files. Each is named after
 * the process that it belongs to, so that the next Cairn removes it when that one was killed.
 *
 *     cairn-import-PID-START-HOST-BOOT-NAMESPACE-XXXXXX
 *
 * Removed is only what keeps to that form, belongs to this user, and whose process is certainly gone: an
 * earlier boot of this host, or no such process in the same PID namespace. Another host's on a shared file
 * system, and another container's, stay.
 */

import { createHash } from 'node:crypto';
import { lstat, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess } from './process-identity.js';
import { thisProcess } from './process-owner.js';

const FORM =
  /^cairn-[a-z]+-(?<pid>\d+)-(?<start>\d+)-(?<host>[0-9a-f]{8})-(?<boot>[0-9a-f]{8})-(?<namespace>\d+)-[A-Za-z0-9]{6}$/;

/** Makes a folder, 0700, below `parent`, and removes those of killed processes. The caller removes it. */
export async function makeWorkFolder(parent: string, kind: 'import' | 'receive'): Promise<string> {
  await sweepWorkFolders(parent);
  const { pid, startTime } = thisProcess();
  const { host, boot, namespace } = here();
  return mkdtemp(join(parent, `cairn-${kind}-${pid}-${startTime}-${host}-${boot}-${namespace}-`));
}

/** Best effort: nothing depends on it. */
export async function sweepWorkFolders(parent: string): Promise<void> {
  for (const name of await readdir(parent).catch(() => [])) {
    const form = FORM.exec(name)?.groups;
    if (form === undefined || !(await isGone(form))) continue;
    const path = join(parent, name);
    const found = await lstat(path).catch(() => undefined);
    if (found?.isDirectory() !== true || found.uid !== process.geteuid?.()) continue;
    await rm(path, { recursive: true, force: true }).catch(() => undefined);
  }
}

async function isGone(form: Readonly<Record<string, string | undefined>>): Promise<boolean> {
  const { host, boot, namespace } = here();
  if (form.host !== host || thisProcess().machineId === '') return false;
  if (form.boot !== boot) return true;
  return form.namespace === namespace && !(await isSameProcess(Number(form.pid), form.start ?? ''));
}

function here(): { readonly host: string; readonly boot: string; readonly namespace: string } {
  const { machineId, hostName, bootId, pidNamespace } = thisProcess();
  const short = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 8);
  return {
    host: short(`${machineId} ${hostName}`),
    boot: short(bootId),
    namespace: /\d+/.exec(pidNamespace)?.[0] ?? '0',
  };
}
