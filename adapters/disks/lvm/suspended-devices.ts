/**
 * lvcreate suspends the volume while it puts a snapshot below it. Killed in that moment it leaves it
 * suspended: whoever writes to it hangs for good. Sources: Documentation/ABI/testing/sysfs-block-dm,
 * dmsetup(8); ids of devices: "LVM-" + id of the group + id of the volume.
 */

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { failureOf, type RunTool } from '../run-tool.js';

const RESUME_LIMIT_MS = 10_000;

/**
 * Resumes what belongs to the volumes of these uuids (as lvs writes them) and is suspended.
 * @returns what could not be resumed, in words
 */
export async function resumeSuspended(
  uuids: readonly string[],
  run: RunTool,
  sysfs = '/sys/block',
): Promise<readonly string[]> {
  const wanted = uuids.filter((uuid) => uuid !== '').map((uuid) => uuid.replaceAll('-', ''));
  const suspended: { readonly name: string; readonly isInner: boolean }[] = [];
  for (const device of await readdir(sysfs).catch(() => [])) {
    if (!device.startsWith('dm-')) continue;
    const read = async (file: string): Promise<string> =>
      (await readFile(join(sysfs, device, 'dm', file), 'utf8').catch(() => '')).trim();
    // LVM-, 32 characters of the group, 32 of the volume, and of an inner device a dash and what it is.
    const of = /^LVM-.{32}(?<volume>.{32})(?<inner>-.*)?$/.exec(await read('uuid'))?.groups;
    if (of === undefined || !wanted.includes(of.volume!) || (await read('suspended')) !== '1') continue;
    suspended.push({ name: await read('name'), isInner: of.inner !== undefined });
  }
  const left: string[] = [];
  // Devices are resumed from the inside out.
  for (const { name } of suspended.sort((a, b) => Number(b.isInner) - Number(a.isInner))) {
    const failure = failureOf('dmsetup', await run('dmsetup', ['resume', name], RESUME_LIMIT_MS));
    if (failure !== '') left.push(`${name}: ${failure}`);
  }
  return left;
}
