/** What a checkpoint in progress says of itself. */
export interface CheckpointProgress {
  readonly phase: 'live' | 'paused' | 'encode' | 'commit';
  readonly round: number;
  readonly donePages: number;
  readonly totalPages: number;
}
