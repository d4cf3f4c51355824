/** What the core refuses before anything is touched; the adapter's reasons come in `VmRewind.prepare`. */

import type { LentVm } from '../checkpoint/session.js';
import { CheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import { sameLayout } from '../hypervisor/memory-layout.js';
import type { VmRewind } from '../hypervisor/rewind.js';
import type { Vm } from '../hypervisor/vm.js';

/** @throws VM_UNSUPPORTED */
export function rewindOf(vm: Vm): VmRewind {
  if (vm.rewind !== undefined) return vm.rewind;
  throw new CheckpointError('VM_UNSUPPORTED', `${vm.address} cannot be rewound in place`, {
    hint: 'a QEMU reached by its monitor (qmp:PATH) can; cairn restore brings this one back',
  });
}

/** @throws TRACKER_UNAVAILABLE */
export function peekOf({ tracker, trackerReason }: LentVm): NonNullable<DirtyTracker['peek']> {
  if (tracker.peek !== undefined) return () => tracker.peek!();
  const why = trackerReason === '' ? '' : ` (${trackerReason})`;
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `no rewind with the tracker ${tracker.kind}${why}: it does not tell what was written without forgetting it`,
    { hint: 'cairn doctor says what pagemap-scan needs; cairn restore brings the VM back without it' },
  );
}

/** @throws CHAIN_WRONG_VM, REWIND_REFUSED */
export function refuseOther({ vm, vmName, layout }: LentVm, manifest: Manifest): void {
  const { id, identity } = manifest;
  if (manifest.vmName !== vmName)
    throw new CheckpointError(
      'CHAIN_WRONG_VM',
      `checkpoint ${id} is of the chain "${manifest.vmName}", and this VM's is "${vmName}"`,
      { hint: 'name the chain with --name' },
    );
  if (identity.instance !== vm.identity.instance) {
    throw refused('OTHER_START', `checkpoint ${id} is not of this run of the VM`, {
      hint: 'its devices may be others: cairn restore brings it back in a QEMU of its own',
    });
  }
  if (!sameLayout(manifest.layout, layout)) {
    throw refused('MEMORY_CHANGED', `the memory of the VM is not laid out as in checkpoint ${id}`, {
      hint: 'unplug what memory came, plug in again what went, or use cairn restore',
    });
  }
  if (manifest.deviceState === null)
    throw refused('NO_DEVICE_STATE', `checkpoint ${id} has no device state`, { hint: 'choose another one' });
  if (manifest.frozen !== undefined) {
    throw refused('FROZEN_GUEST', `in checkpoint ${id} the file systems of the guest are frozen`, {
      hint: 'choose one that was taken without --freeze; cairn restore thaws the guest',
    });
  }
}

export function refused(reason: string, text: string, more: { readonly hint: string }): CheckpointError {
  return new CheckpointError('REWIND_REFUSED', `no rewind: ${text}`, { ...more, detail: { reason } });
}
