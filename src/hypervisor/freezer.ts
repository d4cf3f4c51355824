/** The part of a VM's contract that freezes the guest's file systems, by the agent that runs in the guest. */

/** What a checkpoint keeps about a guest whose file systems were frozen in its pause. */
export interface FrozenGuest {
  readonly fileSystemCount: number;
}

export interface VmFreezer {
  /**
   * Has the agent write out and freeze the file systems, until `thaw`. Should this process die before that,
   * they are thawed all the same.
   * @param limitMs for the agent's answer
   * @param frozenLimitMs for the whole freeze: a process of its own thaws the guest when this one has not done
   *   so a moment after that, whatever holds it up
   * @returns how many were frozen, at least one
   * @throws GUEST_AGENT, VM_STATE, VM_UNSUPPORTED with nothing frozen; GUEST_FROZEN
   */
  freeze(limitMs: number, frozenLimitMs: number): Promise<number>;
  /**
   * Thaws the guest of a VM that runs.
   * @throws GUEST_FROZEN; PAUSE_LIMIT when that process had thawed it before
   */
  thaw(): Promise<void>;
}
