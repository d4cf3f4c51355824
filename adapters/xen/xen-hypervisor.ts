/** Xen as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { attachXen } from './attach.js';
import { disksOfStoppedDomain } from './devices/recorded-disks.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { IMPORT_FORMATS, importSaveFile } from './import.js';
import { receiveRemus } from './remus/receive-remus.js';
import { restoreCheckpoint } from './restore.js';

export const xenHypervisor: Hypervisor = {
  name: 'xen',
  schemes: ['xen'],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: importSaveFile,
  receive: (request) => receiveRemus(request),
  recordedDisks: disksOfStoppedDomain,
  attach: attachXen,
  restore: restoreCheckpoint,
  exportTo: exportCheckpoint,
};
