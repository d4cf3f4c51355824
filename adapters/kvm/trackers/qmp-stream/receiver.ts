/** The receiver thread as the tracker sees it: one stream at a time, read while this thread talks to QEMU. */

import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';

import { CheckpointError, describeError } from '../../../../src/errors.js';
import { openSocketPair, shutDownSocket } from '../../../../src/ffi/socket-pair.js';
import type { ReceivedStream, ReceiveReply, ReceiveRequest, ReceiverSetup } from './receiver-messages.js';

/** How long a read blocks at most: a thread inside a system call cannot be ended. */
const RECEIVE_TIMEOUT_MS = 250;

export class Receiver {
  readonly #worker: Worker;
  #socket: number | undefined;
  #settle: ((reply: ReceiveReply) => void) | undefined;
  #last: Promise<unknown> = Promise.resolve();

  constructor(setup: ReceiverSetup) {
    this.#worker = new Worker(new URL('./receiver-main.js', import.meta.url), { workerData: setup });
    this.#worker.on('message', (reply: ReceiveReply) => this.#finish(reply));
    this.#worker.on('error', (error) => this.#fail(describeError(error)));
    this.#worker.on('exit', () => this.#fail('the thread has ended'));
    // Only a stream under way keeps the process alive, and that through who waits for it.
    this.#worker.unref();
  }

  /**
   * Starts reading. `send` passes the other end to QEMU; it is closed here afterwards.
   * @returns what was received, once the stream has ended
   * @throws TRACKER_FAILED, STREAM_MALFORMED, VM_UNSUPPORTED, WORKER_FAILED
   */
  async receive(
    send: (descriptor: number) => Promise<void>,
  ): Promise<{ readonly ended: Promise<ReceivedStream> }> {
    // A stream that was cut off ends by itself.
    await this.#last;
    const { ours, theirs } = openSocketPair(RECEIVE_TIMEOUT_MS);
    this.#socket = ours;
    const ended = new Promise<ReceivedStream>((resolve, reject) => {
      this.#settle = (reply) => {
        if ('error' in reply) reject(CheckpointError.fromJSON(reply.error));
        else resolve(reply.received);
      };
    });
    // Who waits for it may come later than its failure.
    this.#last = ended.catch(() => undefined);
    this.#worker.ref();
    this.#worker.postMessage({ socket: ours } satisfies ReceiveRequest);
    try {
      await send(theirs);
    } catch (error) {
      this.cut();
      throw error;
    } finally {
      closeSync(theirs);
    }
    return { ended };
  }

  /** Ends the present stream, if there is one: QEMU sees a broken connection. */
  cut(): void {
    if (this.#socket !== undefined) shutDownSocket(this.#socket);
  }

  async close(): Promise<void> {
    this.cut();
    await this.#worker.terminate();
  }

  #finish(reply: ReceiveReply): void {
    const settle = this.#settle;
    this.#settle = undefined;
    this.#worker.unref();
    // QEMU must not wait for a reader that has given up.
    this.cut();
    if (this.#socket !== undefined) closeSync(this.#socket);
    this.#socket = undefined;
    settle?.(reply);
  }

  #fail(why: string): void {
    if (this.#settle === undefined && this.#socket === undefined) return;
    this.#finish({ error: new CheckpointError('WORKER_FAILED', `receiving memory: ${why}`).toJSON() });
  }
}
