/** The checkpoint that a machine was forked from, as its own checkpoints record it. */

export interface ForkOrigin {
  /** UUID. */
  readonly repositoryId: string;
  /** Folder name of its chain. */
  readonly chain: string;
  readonly checkpointId: string;
}
