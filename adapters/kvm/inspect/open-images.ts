/**
 * Whether the images that QEMU names are the files that it has open. They are not when QEMU lives in another mount
 * namespace or root (a container, -chroot), or when somebody has moved or replaced the image below it: a restore
 * would then start with another file of the same name, or with none.
 *
 *     QEMU says    /disk.qcow2  --stat on this host-->  device 8:1, inode 12   --+
 *     /proc/PID/fd 21           --fstat------------->   device 0:54, inode 7   --+-- not the same
 */

import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';

import { isLocalPath } from '../../qemu/image-names.js';
import type { ListedDisk } from './present-disks.js';

/** Descriptors that a manager has handed over have no path. */
const HANDED_OVER = '/dev/fdset/';

/**
 * @param cwd what relative paths start from
 * @returns in words for the operator; nothing where the descriptors of the process cannot be seen
 */
export async function imagesElsewhere(
  pid: number,
  disks: readonly ListedDisk[],
  cwd: string,
): Promise<readonly string[]> {
  const named = disks.flatMap((disk) =>
    [disk.path, ...disk.backingPaths].map((path) => ({ path, device: disk.device })),
  );
  const local = named.filter(({ path }) => isLocalPath(path) && !path.startsWith(HANDED_OVER));
  if (local.length === 0) return [];
  const open = await openFiles(pid);
  if (open === undefined) return [];
  const elsewhere: string[] = [];
  for (const { path, device } of local) {
    const here = await identityOf(resolve(cwd, path.replace(/^file:/, '')));
    if (here !== undefined && open.has(here)) continue;
    const what = here === undefined ? 'is not there for Cairn' : 'is another file for Cairn';
    elsewhere.push(`${path}, which QEMU has open for ${device}, ${what}`);
  }
  return elsewhere;
}

/** What tells a file on this host. Undefined when it cannot be looked at. */
async function identityOf(path: string): Promise<string | undefined> {
  return stat(path, { bigint: true }).then(
    ({ dev, ino }) => `${dev}:${ino}`,
    () => undefined,
  );
}

async function openFiles(pid: number): Promise<ReadonlySet<string> | undefined> {
  const folder = `/proc/${pid}/fd`;
  const numbers = await readdir(folder).catch(() => undefined);
  if (numbers === undefined) return undefined;
  const found = await Promise.all(numbers.map((number) => identityOf(join(folder, number))));
  return new Set(found.filter((identity) => identity !== undefined));
}
