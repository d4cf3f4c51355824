/**
 * What a tracker must know of the VM's state, because marks may be cleared only at certain times.
 *
 * Held: this process has paused the VM. QEMU's `stop` has returned, so vCPUs and virtual timers stand,
 * devices take no more work, and requests to disks that were in flight are complete. Quiet: held, and no
 * device state is being saved, which may write to guest memory. What QEMU's own threads do then does not
 * write to guest memory; QEMU's migration relies on the same when it sends its last pages. A VM that somebody
 * else paused is not held: they may resume it at any moment.
 */
export interface QuietVm {
  isHeld(): boolean;
  /**
   * How often somebody else resumed the VM while it was held, known once the pause is over. What was cleared
   * in such a pause may not have been quiet.
   */
  disturbances(): number;
  isQuiet(): boolean;
  /**
   * Does the work, which is synchronous, while the VM is quiet; stops a running VM for that.
   * @throws VM_STATE, VM_GONE
   */
  whileQuiet<T>(work: () => T): Promise<T>;
}
