/** The part of a VM's contract that brings the state of its devices and vCPUs. */

export interface DeviceStateSource {
  /**
   * Has the hypervisor write the device state of the paused VM aside, so that `take` can pick it up once the
   * VM runs again. May write to guest memory: harvest after it, not before. Under way when this returns.
   */
  save(): Promise<void>;
  /** The bytes of the last `save`; caller owns them, the aside copy is gone. */
  take(): Promise<Uint8Array>;
}

export interface VmDeviceState extends DeviceStateSource {
  /**
   * Asked before each checkpoint, while nothing has been begun for it: whether the state can be had of the VM as
   * it is now. Changes nothing.
   * @throws VM_UNSUPPORTED, with the hypervisor's reason
   */
  check(): Promise<void>;
}
