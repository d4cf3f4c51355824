/** VMs that libvirt owns, as one of Cairn's hypervisors. */

import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { disksOfStoppedQemu } from '../disks/disk-drivers.js';
import { LIBVIRT_SCHEME } from './address.js';
import { EXPORT_FORMATS, exportDomain } from './restore/export.js';
import { attachDomain, LIBVIRT_NAME } from './libvirt-vm.js';
import { restoreDomain } from './restore/restore.js';

export const libvirtHypervisor: Hypervisor = {
  name: LIBVIRT_NAME,
  schemes: [LIBVIRT_SCHEME],
  exportFormats: EXPORT_FORMATS,
  recordedDisks: disksOfStoppedQemu,
  attach: attachDomain,
  restore: restoreDomain,
  exportTo: exportDomain,
};
