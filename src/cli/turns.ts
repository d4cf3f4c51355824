/**
 * Turns of watchers: the service that has started a watcher is asked before each of its checkpoints, so that not all take theirs
 * at once. A watcher that nobody has started so waits for nothing.
 */

export interface TurnMessage {
  readonly turn: 'wanted' | 'given' | 'done';
}

export function isTurnMessage(message: unknown): message is TurnMessage {
  return typeof message === 'object' && message !== null && 'turn' in message;
}

export class Turns {
  readonly #onDisconnect = (): void => {
    // The service is gone: end as when it says so.
    process.kill(process.pid, 'SIGTERM');
  };

  constructor() {
    if (this.#isAsked) process.once('disconnect', this.#onDisconnect);
  }

  get #isAsked(): boolean {
    return process.send !== undefined && process.connected;
  }

  /** Waits for a turn. @returns false when the signal came first */
  async take(signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return false;
    if (!this.#isAsked) return true;
    return new Promise<boolean>((resolve) => {
      const end = (isGiven: boolean): void => {
        process.off('message', onMessage);
        signal.removeEventListener('abort', onAbort);
        resolve(isGiven);
      };
      const onAbort = (): void => end(false);
      const onMessage = (message: unknown): void => {
        if (isTurnMessage(message) && message.turn === 'given') end(true);
      };
      process.on('message', onMessage);
      signal.addEventListener('abort', onAbort);
      this.#say({ turn: 'wanted' });
    });
  }

  /** Gives the turn back. */
  release(): void {
    this.#say({ turn: 'done' });
  }

  /** Nothing is asked any more: an open channel would keep this process. */
  close(): void {
    process.off('disconnect', this.#onDisconnect);
    if (this.#isAsked) process.disconnect();
  }

  #say(message: TurnMessage): void {
    // A service that is just going away takes no more messages; the watcher is told of that by itself.
    if (this.#isAsked) process.send?.(message, undefined, undefined, () => undefined);
  }
}
