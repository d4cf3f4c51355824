/**
 * Takes the bytes of a monitor apart into lines. A peer decides how many bytes come at a time, and whether a
 * line ever ends: what is kept of an unfinished line is one buffer of at most the limit.
 */

const NEWLINE = 0x0a;
const FIRST_BYTES = 4096;

export class LineBuffer {
  readonly #limitBytes: number;
  #kept = Buffer.alloc(0);
  #keptBytes = 0;

  /** @param limitBytes of one line, without its end */
  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  /**
   * @param onLine gets each line that is complete now, without its end, valid during the call; false when no
   *   more lines are wanted
   * @returns false when a line is longer than the limit: nothing more may be given
   */
  push(bytes: Buffer, onLine: (line: Buffer) => boolean): boolean {
    let from = 0;
    for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, from)) {
      const rest = bytes.subarray(from, at);
      from = at + 1;
      if (this.#keptBytes + rest.length > this.#limitBytes) return false;
      if (!onLine(this.#keptBytes === 0 ? rest : this.#taken(rest))) return true;
    }
    if (this.#keptBytes + bytes.length - from > this.#limitBytes) return false;
    this.#keep(bytes.subarray(from));
    return true;
  }

  #taken(rest: Buffer): Buffer {
    this.#keep(rest);
    const line = this.#kept.subarray(0, this.#keptBytes);
    this.#kept = Buffer.alloc(0);
    this.#keptBytes = 0;
    return line;
  }

  #keep(bytes: Buffer): void {
    const neededBytes = this.#keptBytes + bytes.length;
    if (neededBytes > this.#kept.length) {
      const grown = Buffer.allocUnsafe(Math.max(FIRST_BYTES, neededBytes, 2 * this.#kept.length));
      this.#kept.copy(grown, 0, 0, this.#keptBytes);
      this.#kept = grown;
    }
    bytes.copy(this.#kept, this.#keptBytes);
    this.#keptBytes = neededBytes;
  }
}
