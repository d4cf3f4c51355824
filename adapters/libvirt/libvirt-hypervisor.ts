/** VMs that libvirt owns, as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { readSettings } from '../../src/hypervisor/restore-options.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { LIBVIRT_SCHEME } from './address.js';
import { EXPORT_FORMATS, exportDomain } from './restore/export.js';
import { attachDomain, LIBVIRT_NAME } from './libvirt-vm.js';
import { planDomainRestore } from './restore/plan.js';
import { restoreDomain } from './restore/restore.js';
import { LIBVIRT_RESTORE_OPTIONS } from './restore/options.js';

export const libvirtHypervisor: Hypervisor = {
  name: LIBVIRT_NAME,
  schemes: [LIBVIRT_SCHEME],
  exportFormats: EXPORT_FORMATS,
  recordedDisks: disksOfStoppedQemu,
  attach: attachDomain,
  restoreOptions: LIBVIRT_RESTORE_OPTIONS,
  planRestore: (source, request, settings) =>
    planDomainRestore(source, { ...request, ...readSettings(LIBVIRT_RESTORE_OPTIONS, settings) }),
  restore: (source, request, settings) =>
    restoreDomain(source, { ...request, ...readSettings(LIBVIRT_RESTORE_OPTIONS, settings) }),
  exportTo: exportDomain,
};
