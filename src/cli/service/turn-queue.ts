/** Which watchers may take a checkpoint now: so many at a time, the most urgent first, none in its quiet hours. */

interface Waiting {
  readonly key: string;
  readonly priority: number;
  /** None for as long as this says no. */
  readonly mayBegin: () => boolean;
  readonly give: () => void;
}

export class TurnQueue {
  /** Checkpoints at the same time. */
  limit: number;
  readonly #busy = new Set<string>();
  #waiting: Waiting[] = [];

  constructor(limit: number) {
    this.limit = limit;
  }

  get busy(): number {
    return this.#busy.size;
  }

  want(entry: Waiting): void {
    this.#waiting = [...this.#waiting.filter(({ key }) => key !== entry.key), entry];
    this.next();
  }

  /** The turn comes back, or is not wanted any more. */
  done(key: string): void {
    this.#busy.delete(key);
    this.#waiting = this.#waiting.filter((one) => one.key !== key);
    this.next();
  }

  /** Gives turns to whoever may have one: to be called when quiet hours may have ended, too. */
  next(): void {
    const inOrder = [...this.#waiting].sort((a, b) => b.priority - a.priority);
    for (const one of inOrder) {
      if (this.#busy.size >= this.limit) return;
      if (!one.mayBegin()) continue;
      this.#waiting = this.#waiting.filter((other) => other !== one);
      this.#busy.add(one.key);
      one.give();
    }
  }
}
