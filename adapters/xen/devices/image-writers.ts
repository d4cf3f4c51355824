/**
 * Who has an image open for writing. The QEMU of a domain takes no locks on images (hw/block/xen-block.c:
 * `locking=off`), so what its processes have open is what tells. Needs root, as everything in dom0.
 */

import { readdir, readFile, stat } from 'node:fs/promises';

import { openFlagsOf } from '../../qemu/open-flags.js';

/** Access mode among the flags of open(2); 0 is for reading alone. */
const ACCESS_MASK = 3;

/** Names in words who has the image open for writing; empty when nobody has. */
export async function writersOf(path: string): Promise<readonly string[]> {
  const image = await stat(path);
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    // Processes and descriptors come and go meanwhile.
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const target = await stat(`/proc/${pid}/fd/${fd}`).catch(() => undefined);
      if (target?.ino !== image.ino || target.dev !== image.dev) continue;
      const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'latin1').catch(() => '');
      if ((openFlagsOf(info) & ACCESS_MASK) === 0) continue;
      const name = (await readFile(`/proc/${pid}/comm`, 'latin1').catch(() => '')).trim();
      found.push(`${name || 'a process'} (${pid})`);
      break;
    }
  }
  return found;
}
