/** A monitor without a QEMU: answers as a test says, and sends the events that it is told to. */

import type { Monitor, QmpEvent } from '../../adapters/qemu/monitor.js';
import type { Json, JsonObject } from '../../src/types.js';

export type Answer = (command: string, args: JsonObject) => Json;

export class FakeMonitor implements Monitor {
  readonly commands: string[] = [];
  readonly #answer: Answer;
  readonly #listeners = new Set<(event: QmpEvent) => void>();

  /** @param answer may throw what `execute` is to reject with */
  constructor(answer: Answer) {
    this.#answer = answer;
  }

  async execute(command: string, args: JsonObject = {}): Promise<Json> {
    this.commands.push(command);
    await Promise.resolve();
    return this.#answer(command, args);
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: string, data: JsonObject = {}): void {
    for (const listener of this.#listeners) listener({ event, data });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
