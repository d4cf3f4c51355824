/** VMs that libvirt owns, as one of Cairn's hypervisors. Loaded in parts, like `kvm/kvm-hypervisor.ts`. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { LIBVIRT_NAME, LIBVIRT_SCHEME } from './address.js';
import { EXPORT_FORMATS, IMPORT_FORMATS } from './formats.js';
import { LIBVIRT_RESTORE_OPTIONS } from './restore/options.js';

export const libvirtHypervisor: Hypervisor = {
  name: LIBVIRT_NAME,
  schemes: [LIBVIRT_SCHEME],
  exportFormats: EXPORT_FORMATS,
  importFormats: IMPORT_FORMATS,
  importFrom: async (request) => (await import('./import.js')).importSaveImage(request),
  recordedDisks: disksOfStoppedQemu,
  attach: async (...request) => (await import('./libvirt-vm.js')).attachDomain(...request),
  running: async () => (await import('./running.js')).runningDomains(),
  restoreOptions: LIBVIRT_RESTORE_OPTIONS,
  planRestore: async (source, request, settings) => {
    const { planDomainRestore } = await import('./restore/plan.js');
    return planDomainRestore(source, { ...request, ...readSettings(LIBVIRT_RESTORE_OPTIONS, settings) });
  },
  restore: async (source, request, settings) => {
    const { restoreDomain } = await import('./restore/restore.js');
    return restoreDomain(source, { ...request, ...readSettings(LIBVIRT_RESTORE_OPTIONS, settings) });
  },
  exportTo: async (...request) => (await import('./restore/export.js')).exportDomain(...request),
};
