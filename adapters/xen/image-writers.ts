/**
 * Who has an image open for writing. The QEMU of a domain takes no locks on images (hw/block/xen-block.c: `locking=off`), so what its
 * processes have open is what tells. Needs root, as everything in dom0.
 */

import { readdir, readFile, stat } from 'node:fs/promises';

/** Access mode in the octal `flags` of fdinfo (proc_pid_fdinfo(5)). */
const ACCESS_MASK = 3;

/** In words; empty when nobody has. */
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
      const flags = Number.parseInt(/^flags:\s*([0-7]+)/m.exec(info)?.[1] ?? '0', 8);
      if ((flags & ACCESS_MASK) === 0) continue;
      const name = (await readFile(`/proc/${pid}/comm`, 'latin1').catch(() => '')).trim();
      found.push(`${name || 'a process'} (${pid})`);
      break;
    }
  }
  return found;
}
