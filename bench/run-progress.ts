/** What a bench run has measured so far, in a file of the cache, so that a run that was cut off goes on where it stopped. */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

import type { BenchRow } from './rows.js';

interface Stored {
  readonly commit: string;
  readonly quick: boolean;
  readonly sections: Record<string, StoredSection>;
}

export interface StoredSection {
  readonly date: string;
  readonly rows: readonly BenchRow[];
}

export class RunProgress {
  readonly #path: string;
  readonly #stored: Stored;

  private constructor(path: string, stored: Stored) {
    this.#path = path;
    this.#stored = stored;
  }

  /** What another commit or another mode measured does not count, and nothing does with `again`. */
  static open(
    path: string,
    run: { readonly commit: string; readonly quick: boolean; readonly again: boolean },
  ): RunProgress {
    const { commit, quick } = run;
    if (existsSync(path) && !run.again) {
      const stored = JSON.parse(readFileSync(path, 'utf8')) as Stored;
      if (stored.commit === commit && stored.quick === quick) return new RunProgress(path, stored);
    }
    return new RunProgress(path, { commit, quick, sections: {} });
  }

  sectionOf(section: string): StoredSection | undefined {
    return this.#stored.sections[section];
  }

  done(section: string, rows: readonly BenchRow[]): void {
    this.#stored.sections[section] = { date: new Date().toISOString().slice(0, 10), rows };
    mkdirSync(dirname(this.#path), { recursive: true });
    writeFileSync(this.#path, JSON.stringify(this.#stored));
  }
}
