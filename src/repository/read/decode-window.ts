/**
 * Frames that are being decoded, a few at a time on libuv's threads, and taken out in the order in which they
 * were put in.
 *
 *     put in -->  [ frame 7 | frame 6 | frame 5 | frame 4 ]  --> taken out, decoded
 *                   a window of DECODES_IN_FLIGHT
 */

/** libuv has four threads unless it is told otherwise. */
const DECODES_IN_FLIGHT = 4;

/** What was put in for a frame, and what it decodes to. */
interface Entry<Frame, Decoded> {
  readonly frame: Frame;
  readonly decoded: Promise<Decoded>;
}

export class DecodeWindow<Frame, Decoded> {
  readonly #entries: Entry<Frame, Decoded>[] = [];

  get isFull(): boolean {
    return this.#entries.length >= DECODES_IN_FLIGHT;
  }

  get isEmpty(): boolean {
    return this.#entries.length === 0;
  }

  /** Begins to decode at once. */
  start(frame: Frame, decode: () => Promise<Decoded>): void {
    const decoded = decode();
    // A failure is met when the frame's turn comes, or not at all after another one's.
    decoded.catch(() => undefined);
    this.#entries.push({ frame, decoded });
  }

  /** The frame that was put in first. The window must not be empty. */
  take(): Entry<Frame, Decoded> {
    return this.#entries.shift()!;
  }
}
