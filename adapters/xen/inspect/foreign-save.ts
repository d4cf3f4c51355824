/**
 * Is somebody else saving or migrating a domain of this host? libxl does that in a process of its own,
 * libxl-save-helper, which uses (and in the end switches off) the one log-dirty bitmap that the domain has.
 */

import { readFileSync, readdirSync } from 'node:fs';

/** The kernel cuts names of processes after 15 characters. */
const HELPER_NAME = 'libxl-save-help';

/**
 * The process that saves, migrates or restores this domain, empty when there is none.
 * Its arguments are: mode, two descriptors, domain id, flags (tools/libs/light/libxl_save_callout.c).
 */
export function foreignSave(domid: number, procDir = '/proc'): string {
  for (const entry of readdirSync(procDir)) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      if (readFileSync(`${procDir}/${entry}/comm`, 'latin1').trim() !== HELPER_NAME) continue;
      const args = readFileSync(`${procDir}/${entry}/cmdline`, 'latin1').split('\0');
      if (args[4] === String(domid)) return `libxl-save-helper (process ${entry})`;
    } catch {
      // Ended in the meantime.
    }
  }
  return '';
}
