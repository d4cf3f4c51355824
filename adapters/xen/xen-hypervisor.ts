/** Xen as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { attachXen } from './attach.js';
import { disksOfStoppedDomain } from './devices/recorded-disks.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { IMPORT_FORMATS, importSaveFile } from './import.js';
import { receiveRemus } from './remus/receive-remus.js';
import { planRestore } from './restore-plan.js';
import { restoreCheckpoint } from './restore.js';
import { XEN_RESTORE_OPTIONS } from './restore-options.js';

export const xenHypervisor: Hypervisor = {
  name: 'xen',
  schemes: ['xen'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: importSaveFile,
  receive: (request) => receiveRemus(request),
  recordedDisks: disksOfStoppedDomain,
  attach: attachXen,
  restoreOptions: XEN_RESTORE_OPTIONS,
  planRestore: (source, request) => Promise.resolve(planRestore(source, request)),
  restore: (source, request, settings) =>
    restoreCheckpoint(source, { ...request, ...readSettings(XEN_RESTORE_OPTIONS, settings) }),
  exportTo: exportCheckpoint,
};
