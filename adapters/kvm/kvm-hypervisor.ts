/**
 * QEMU and KVM as one of Cairn's hypervisors. What attaches, restores, exports and imports is loaded when it is
 * used: a command pays for the start of no adapter but its own.
 */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { EXPORT_FORMATS, IMPORT_FORMATS } from './formats.js';
import { KVM_RESTORE_OPTIONS } from './restore/options.js';

export const kvmHypervisor: Hypervisor = {
  name: 'kvm',
  schemes: ['qmp'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: async (request) => (await import('./import.js')).importMigration(request),
  recordedDisks: disksOfStoppedQemu,
  attach: async (...request) => (await import('./attach.js')).attachKvm(...request),
  restoreOptions: KVM_RESTORE_OPTIONS,
  planRestore: async (source, request, settings) => {
    const { planRestore } = await import('./restore/plan.js');
    return planRestore(source, { ...request, ...readSettings(KVM_RESTORE_OPTIONS, settings) });
  },
  restore: async (source, request, settings) => {
    const { restoreCheckpoint } = await import('./restore/restore.js');
    return restoreCheckpoint(source, { ...request, ...readSettings(KVM_RESTORE_OPTIONS, settings) });
  },
  exportTo: async (...request) => (await import('./export.js')).exportCheckpoint(...request),
};
