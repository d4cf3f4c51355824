/** The part of a VM's contract that brings the state of its devices and vCPUs. */

import { CheckpointError } from '../errors.js';
import { formatBytes } from '../text.js';

/**
 * 1 GiB, what a repository holds as one blob (docs/format.md, bounds). Most have less than a MiB; a graphics
 * card of QEMU that the guest has given many pictures has some 256.
 */
export const MAX_DEVICE_STATE_BYTES = 2 ** 30;

export interface DeviceStateSource {
  /**
   * Has the hypervisor write the device state of the paused VM aside, so that `take` can pick it up once the
   * VM runs again. May write to guest memory: harvest after it, not before. Under way when this returns.
   */
  save(): Promise<void>;
  /**
   * The bytes of the last `save`; caller owns them, the aside copy is gone.
   * @throws VM_UNSUPPORTED above `MAX_DEVICE_STATE_BYTES`
   */
  take(): Promise<Uint8Array>;
}

export interface VmDeviceState extends DeviceStateSource {
  /**
   * Asked before each checkpoint, while nothing has been begun for it: whether the state can be had of the VM
   * as it is now. Changes nothing.
   * @throws VM_UNSUPPORTED, with the hypervisor's reason
   */
  check(): Promise<void>;
}

/** @throws VM_UNSUPPORTED above `MAX_DEVICE_STATE_BYTES` */
export function refuseHugeState(sizeBytes: number): void {
  if (sizeBytes <= MAX_DEVICE_STATE_BYTES) return;
  throw new CheckpointError(
    'VM_UNSUPPORTED',
    `the devices have a state of more than ${formatBytes(MAX_DEVICE_STATE_BYTES)}`,
    {
      hint: 'give the VM a graphics card with less memory, or fewer of them (max_hostmem of virtio-gpu)',
      detail: { sizeBytes },
    },
  );
}
