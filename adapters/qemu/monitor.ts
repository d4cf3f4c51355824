/**
 * What the adapter needs of QEMU's monitor, whichever way it is reached: a QMP socket, or libvirt's
 * pass-through.
 */

import { isCheckpointError } from '../../src/errors.js';
import type { JsonObject, Json } from '../../src/types.js';

export interface QmpEvent {
  readonly event: string;
  readonly data: JsonObject;
}

export interface ExecuteOptions {
  readonly timeoutMs?: number;
  /** Goes along with the command as SCM_RIGHTS; for `add-fd` and `getfd`. Stays open here. */
  readonly passDescriptor?: number;
}

export interface Monitor {
  /** @throws QMP_COMMAND (with class and desc), QMP_TIMEOUT, QMP_PROTOCOL, VM_GONE */
  execute(command: string, args?: JsonObject, options?: ExecuteOptions): Promise<Json>;
  /**
   * @returns a function that ends the subscription
   * @throws VM_UNSUPPORTED where QEMU's events do not come through
   */
  onEvent(listener: (event: QmpEvent) => void): () => void;
  /** Of the connection to QEMU, negative once it has ended; absent where somebody else has the connection. */
  readonly descriptor?: number;
  close(): Promise<void>;
}

/** Listens as `onEvent` does; undefined where QEMU's events do not come through. */
export function eventsOf(monitor: Monitor, listener: (event: QmpEvent) => void): (() => void) | undefined {
  try {
    return monitor.onEvent(listener);
  } catch (error) {
    if (isCheckpointError(error, 'VM_UNSUPPORTED')) return undefined;
    throw error;
  }
}

/** A command of the human monitor, for what QMP does not offer. @returns its text */
export async function humanCommand(monitor: Monitor, commandLine: string): Promise<string> {
  const reply = await monitor.execute('human-monitor-command', { 'command-line': commandLine });
  return typeof reply === 'string' ? reply : '';
}
