/** Xen as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { attachXen } from './attach.js';
import { EXPORT_FORMATS, exportCheckpoint } from './export.js';
import { restoreCheckpoint } from './restore.js';

export const xenHypervisor: Hypervisor = {
  name: 'xen',
  schemes: ['xen'],
  exportFormats: EXPORT_FORMATS,
  attach: attachXen,
  restore: restoreCheckpoint,
  exportTo: exportCheckpoint,
};
