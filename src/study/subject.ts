/**
 * What an analysis looks at: epochs of writing, from a live VM, a trace or the increments of a repository's
 * chain.
 */

/** One stretch of time in which the guest ran and wrote. */
export interface ObservedEpoch {
  /** Time for which the guest ran. */
  readonly runMs: number;
  /** All pages that became dirty, ascending. */
  readonly pages: Uint32Array;
  /** The pages of `pages` whose contents are known, ascending. */
  readonly contentPages: Uint32Array;
  /**
   * 4096 bytes for each of `contentPages`: before the epoch, after it. Valid until the next epoch is asked
   * for.
   */
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export interface Subject {
  readonly kind: 'vm' | 'trace' | 'repository';
  /** Address of the VM, path of the trace, or name of the chain. */
  readonly name: string;
  readonly memoryBytes: number;
  /** Length of an epoch as intended; for a repository the median distance of its checkpoints. */
  readonly epochMs: number;
  /** Median pause of a checkpoint of this VM; undefined when none is known. */
  readonly pauseMs: number | undefined;
  epochs(): AsyncIterable<ObservedEpoch>;
}
