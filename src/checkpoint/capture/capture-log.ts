/** What one capture tells while it is under way: its round, its progress, its warnings. */

import type { Decision } from '../pause/stop-policy.js';
import type { CheckpointProgress } from '../progress.js';

export class CaptureLog {
  /** Rounds of copies while the VM runs; the one under way is counted. */
  round = 0;
  readonly warnings: string[] = [];
  readonly #onProgress: (progress: CheckpointProgress) => void;

  constructor(onProgress: (progress: CheckpointProgress) => void) {
    this.#onProgress = onProgress;
  }

  readonly warn = (text: string): void => {
    this.warnings.push(text);
  };

  /** Says that much is left when another round of `totalPages` begins. */
  live(totalPages: number): void {
    this.#onProgress({ phase: 'live', round: this.round, donePages: 0, totalPages });
  }

  /** Right before the VM is stopped. */
  pausing(totalPages: number): void {
    this.#onProgress({ phase: 'paused', round: this.round, donePages: 0, totalPages });
  }

  /** @returns to be called with the pages of each part that is done */
  counting(phase: CheckpointProgress['phase'], totalPages: number): (pageCount: number) => void {
    let donePages = 0;
    return (pageCount) => {
      donePages += pageCount;
      this.#onProgress({ phase, round: this.round, donePages, totalPages });
    };
  }

  /** @returns true when the VM is to be stopped now */
  heed(decision: Decision, pagesLeft: number): boolean {
    if (decision === 'stop-hopeless') {
      this.warn(
        `the VM writes faster than it can be copied: after ${this.round} rounds ${pagesLeft} pages were left for the pause`,
      );
    }
    return decision !== 'another-round';
  }
}
