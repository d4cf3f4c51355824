/** Domains of this host that run: libvirt keeps a file with the id of the process of each. */

import { readdir } from 'node:fs/promises';

import type { RunningVm } from '../../src/hypervisor/hypervisor.js';
import { LIBVIRT_SCHEME } from './address.js';

/** Of the daemon of the whole host. */
const FOLDER = '/run/libvirt/qemu';
const ENDING = '.pid';
/** The daemon's own. */
const NOT_DOMAINS: ReadonlySet<string> = new Set(['driver']);

export async function runningDomains(folder = FOLDER): Promise<readonly RunningVm[]> {
  const files = await readdir(folder).catch(() => []);
  return files
    .filter((file) => file.endsWith(ENDING))
    .map((file) => file.slice(0, -ENDING.length))
    .filter((name) => !NOT_DOMAINS.has(name))
    .map((name) => ({ address: `${LIBVIRT_SCHEME}:${name}`, name, instance: `libvirt:${name}` }));
}
