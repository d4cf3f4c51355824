/** QEMU and KVM as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { attachKvm } from './attach.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { IMPORT_FORMATS, importMigration } from './import.js';
import { restoreCheckpoint } from './restore/restore.js';

export const kvmHypervisor: Hypervisor = {
  name: 'kvm',
  schemes: ['qmp'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: importMigration,
  recordedDisks: disksOfStoppedQemu,
  attach: attachKvm,
  restore: restoreCheckpoint,
  exportTo: exportCheckpoint,
};
