/** Xen as one of Cairn's hypervisors. Loaded in parts, like `kvm/kvm-hypervisor.ts`. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { disksOfStoppedDomain } from './devices/recorded-disks.js';
import { EXPORT_FORMATS, FOREIGN_FILES, IMPORT_FORMATS } from './formats.js';
import { XEN_RESTORE_OPTIONS } from './restore-options.js';

export const xenHypervisor: Hypervisor = {
  name: 'xen',
  schemes: ['xen'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  foreignFiles: FOREIGN_FILES,
  importFrom: async (request) => (await import('./import.js')).importSaveFile(request),
  receive: async (request) => (await import('./remus/receive-remus.js')).receiveRemus(request),
  recordedDisks: () => disksOfStoppedDomain(),
  attach: async (...request) => (await import('./attach.js')).attachXen(...request),
  restoreOptions: XEN_RESTORE_OPTIONS,
  planRestore: async (source, request) => (await import('./restore-plan.js')).planRestore(source, request),
  restore: async (source, request, settings) => {
    const { restoreCheckpoint } = await import('./restore.js');
    return restoreCheckpoint(source, { ...request, ...readSettings(XEN_RESTORE_OPTIONS, settings) });
  },
  exportTo: async (...request) => (await import('./export.js')).exportCheckpoint(...request),
};
