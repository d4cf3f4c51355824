/**
 * What the kernel does to pages that takes their soft-dirty bit away, as far as it can be seen from outside.
 */

import { readFileSync } from 'node:fs';

import { systemErrorCode } from '../../../../src/errors.js';

/** Counters of /proc/vmstat; a kernel without page migration has none of them. */
const MIGRATIONS = /^(?:pgmigrate_|thp_migration_)\w+ \d+$/gm;

/**
 * Changes when a page of any process has been migrated (compaction, NUMA balancing, memory hot-remove). A
 * migration entry keeps that it was writable when the bits are cleared around it, so the page comes back
 * without write protection and without the bit (fs/proc/task_mmu.c clear_soft_dirty, mm/migrate.c
 * remove_migration_pte). Failed migrations do the same.
 */
export function migrationCount(): string {
  return (readFileSync('/proc/vmstat', 'latin1').match(MIGRATIONS) ?? []).join(' ');
}

/**
 * True when KSM has merged pages of the process, or when that cannot be told (kernels before 5.19) and KSM
 * has merged any.
 */
export function hasMergedPages(pid: number): boolean {
  try {
    return Number(readFileSync(`/proc/${pid}/ksm_merging_pages`, 'latin1')) > 0;
  } catch (error) {
    if (systemErrorCode(error) === 'ESRCH') return false;
    return readKsm('pages_shared') > 0;
  }
}

/** True while KSM looks for pages to merge, if the process lets it have any. */
export function isMerging(pid: number): boolean {
  if (readKsm('run') !== 1) return false;
  try {
    return /^VmFlags:.*\bmg\b/m.test(readFileSync(`/proc/${pid}/smaps`, 'latin1'));
  } catch {
    return true;
  }
}

function readKsm(name: string): number {
  try {
    return Number(readFileSync(`/sys/kernel/mm/ksm/${name}`, 'latin1'));
  } catch {
    // Built without KSM.
    return 0;
  }
}
