/** A QEMU that is being filled, as its source sees it: what goes out in order, what comes back as promises. */

import type { Socket } from 'node:net';

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { SendQueue } from '../stream/send-queue.js';
import { RUN_PING } from './commands.js';
import { die, isFaultStep } from './fault-steps.js';
import { ReturnPath, type ReturnMessage } from './return-path.js';

export class Destination {
  readonly #socket: Socket;
  readonly #queue: SendQueue;
  readonly #onPages: (firstPage: number, pageCount: number) => void;
  readonly #received = new Map<MemoryRegion, Uint8Array>();
  readonly #waiting = new Set<() => void>();
  #failure: CheckpointError | undefined;
  #isStarted = false;
  #isResumed = false;
  #shut: number | undefined;

  /** @param onPages called for each request, in order */
  constructor(socket: Socket, layout: MemoryLayout, onPages: (firstPage: number, pageCount: number) => void) {
    this.#socket = socket;
    this.#onPages = onPages;
    this.#queue = new SendQueue(socket, undefined);
    const returnPath = new ReturnPath(layout);
    socket.on('data', (bytes) => {
      try {
        for (const message of returnPath.read(bytes)) this.#take(message);
      } catch (error) {
        this.#fail(error);
      }
      this.#wake();
    });
    socket.on('error', (error) => this.#fail(error));
    socket.on('close', () => this.#fail(new Error('QEMU closed the connection')));
    socket.on('end', () => this.#fail(new Error('QEMU closed the connection')));
  }

  /** It has its device state, and runs next. @throws VM_GONE as all that waits here, when the connection has ended */
  async started(): Promise<void> {
    await this.#until(() => this.#isStarted);
  }

  /** All that it says to have of each region, a bit a page; for a connection in the place of an earlier one. */
  async received(regionCount: number): Promise<ReadonlyMap<MemoryRegion, Uint8Array>> {
    await this.#until(() => this.#received.size === regionCount);
    return this.#received;
  }

  async resumed(): Promise<void> {
    await this.#until(() => this.#isResumed);
  }

  /** @returns what it says once the stream has ended: 0 for good */
  async shut(): Promise<number> {
    await this.#until(() => this.#shut !== undefined);
    return this.#shut!;
  }

  /** Never settles well: rejects when the connection has ended. */
  async lost(): Promise<never> {
    await this.#until(() => false);
    throw new RangeError('a connection that has ended without a failure');
  }

  write(bytes: Uint8Array): void {
    if (isFaultStep()) {
      this.#socket.write(bytes.subarray(0, bytes.length >>> 1), die);
      return;
    }
    this.#queue.write(bytes);
  }

  /** Until no more than so many bytes wait for the kernel to take them. */
  async below(bytes: number): Promise<void> {
    try {
      await this.#queue.below(bytes);
    } catch (error) {
      this.#fail(error);
      throw this.#failure ?? error;
    }
  }

  close(): void {
    this.#queue.detach();
    this.#socket.destroy();
  }

  #take(message: ReturnMessage): void {
    switch (message.kind) {
      case 'pages':
        this.#onPages(message.firstPage, message.pageCount);
        return;
      case 'pong':
        this.#isStarted ||= message.value === RUN_PING;
        return;
      case 'received':
        this.#received.set(message.region, message.bitmap);
        return;
      case 'resumed':
        this.#isResumed = true;
        return;
      case 'shut':
        this.#shut = message.error;
    }
  }

  async #until(isSo: () => boolean): Promise<void> {
    while (!isSo()) {
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  #fail(cause: unknown): void {
    this.#failure ??= new CheckpointError(
      'VM_GONE',
      `the connection to the QEMU that is filled was lost: ${describeError(cause)}`,
      { cause },
    );
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }
}
