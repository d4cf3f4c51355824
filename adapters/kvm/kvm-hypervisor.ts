/**
 * QEMU and KVM as one of Cairn's hypervisors. What attaches, restores, exports and imports is loaded when it is
 * used: a command pays for the start of no adapter but its own.
 */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { EXPORT_FORMATS, FOREIGN_FILES, IMPORT_FORMATS } from './formats.js';
import { KVM_RESTORE_OPTIONS } from './restore/options.js';

export const kvmHypervisor: Hypervisor = {
  name: 'kvm',
  schemes: ['qmp'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  foreignFiles: FOREIGN_FILES,
  importFrom: async (request) => (await import('./import.js')).importMigration(request),
  recordedDisks: disksOfStoppedQemu,
  attach: async (...request) => (await import('./attach.js')).attachKvm(...request),
  running: async () => (await import('./inspect/running.js')).runningQemus(),
  hostFindings: async () => (await import('./inspect/host.js')).kvmHostFindings(),
  restoreOptions: KVM_RESTORE_OPTIONS,
  pageServingModule: new URL('./restore/lazy/serve-pages.js', import.meta.url).href,
  planRestore: async (source, request, settings) => {
    const { planRestore } = await import('./restore/plan.js');
    const { withMovedPaths } = await import('./restore/moved-paths.js');
    const own = readSettings(KVM_RESTORE_OPTIONS, settings);
    return planRestore(withMovedPaths(source, own.setPaths), { ...request, ...own });
  },
  restore: async (source, request, settings) => {
    const { restoreCheckpoint } = await import('./restore/restore.js');
    const { withMovedPaths } = await import('./restore/moved-paths.js');
    const own = readSettings(KVM_RESTORE_OPTIONS, settings);
    return restoreCheckpoint(withMovedPaths(source, own.setPaths), { ...request, ...own });
  },
  planForks: async (...request) => (await import('./fork/plan-forks.js')).planForks(...request),
  exportTo: async (...request) => (await import('./export.js')).exportCheckpoint(...request),
};
