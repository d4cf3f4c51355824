/** QEMU and KVM as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { attachKvm } from './attach.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { IMPORT_FORMATS, importMigration } from './import.js';
import { planRestore } from './restore/plan.js';
import { restoreCheckpoint } from './restore/restore.js';
import { KVM_RESTORE_OPTIONS } from './restore/options.js';

export const kvmHypervisor: Hypervisor = {
  name: 'kvm',
  schemes: ['qmp'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: importMigration,
  recordedDisks: disksOfStoppedQemu,
  attach: attachKvm,
  restoreOptions: KVM_RESTORE_OPTIONS,
  planRestore: (source, request, settings) =>
    planRestore(source, { ...request, ...readSettings(KVM_RESTORE_OPTIONS, settings) }),
  restore: (source, request, settings) =>
    restoreCheckpoint(source, { ...request, ...readSettings(KVM_RESTORE_OPTIONS, settings) }),
  exportTo: exportCheckpoint,
};
