/** Why KVM's own dirty log does not serve the VM of a QEMU. See docs/kvm.md. */

import type { TrackerReport } from '../../../../src/hypervisor/dirty-tracker.js';
import { KVM_DIRTY_LOG_KIND } from './tracker.js';

export const kvmDirtyLogReport: TrackerReport = {
  kind: KVM_DIRTY_LOG_KIND,
  usable: false,
  reason:
    'KVM shows its log only to the process that made the VM, which is QEMU, and the log lacks what QEMU writes itself',
  remedy: 'it is for programs that run their VM themselves; nothing to change here',
};
