/** QEMU and KVM as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { attachKvm } from './attach.js';
import { dropStoredSnapshots } from '../disks/stored-snapshots.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { IMPORT_FORMATS, importMigration } from './import.js';
import { restoreCheckpoint } from './restore/restore.js';

export const kvmHypervisor: Hypervisor = {
  name: 'kvm',
  schemes: ['qmp'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: importMigration,
  dropDiskSnapshots: dropStoredSnapshots,
  attach: attachKvm,
  restore: restoreCheckpoint,
  exportTo: exportCheckpoint,
};
