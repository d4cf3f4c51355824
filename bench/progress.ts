/** What a full run has finished, so that one that was interrupted goes on there. Kept in the cache, for one commit at a time. */

import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import type { BenchArea, BenchRow } from './rows.js';
import { workloadCache } from './trace/workload-guest.js';

interface Finished {
  readonly commit: string;
  readonly areas: Partial<Record<BenchArea, readonly BenchRow[]>>;
}

export class BenchProgress {
  readonly #path = join(workloadCache(), 'bench-progress.json');
  readonly #commit: string;
  #areas: Finished['areas'] = {};

  constructor(commit: string) {
    this.#commit = commit;
    if (!existsSync(this.#path)) return;
    const before = JSON.parse(readFileSync(this.#path, 'utf8')) as Finished;
    if (before.commit === commit) this.#areas = before.areas;
  }

  /** Rows of an area that was finished at this commit. */
  rowsOf(area: BenchArea): readonly BenchRow[] | undefined {
    return this.#areas[area];
  }

  finish(area: BenchArea, rows: readonly BenchRow[]): void {
    this.#areas = { ...this.#areas, [area]: rows };
    mkdirSync(dirname(this.#path), { recursive: true });
    writeFileSync(`${this.#path}~`, JSON.stringify({ commit: this.#commit, areas: this.#areas }));
    renameSync(`${this.#path}~`, this.#path);
  }

  /** Everything is done: the next run starts anew. */
  clear(): void {
    rmSync(this.#path, { force: true });
  }
}
