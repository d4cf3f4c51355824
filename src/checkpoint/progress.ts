/** One status message of a checkpoint in progress. */
export interface CheckpointProgress {
  readonly phase: 'live' | 'paused' | 'encode' | 'commit';
  readonly round: number;
  readonly donePages: number;
  readonly totalPages: number;
}
