/** What a page server's process is started with: one argument of JSON. */

import type { ProcessIdentity } from '../../host/process-identity.js';
import type { JsonObject } from '../../types.js';

export interface ServerOrder {
  readonly repository: string;
  readonly checkpointId: string;
  /** URL of the adapter's module. */
  readonly modulePath: string;
  readonly vm: ProcessIdentity;
  readonly vmAddress: string;
  readonly vmName: string;
  readonly args: JsonObject;
  readonly bytesPerSecond: number;
  readonly runtimeDir: string;
  /** There is a connection to the VM, on descriptor `STREAM_DESCRIPTOR`. Otherwise it takes over. */
  readonly hasStream: boolean;
}

export const STREAM_DESCRIPTOR = 3;

export function readOrder(argv: readonly string[]): ServerOrder {
  return JSON.parse(argv[2] ?? '') as ServerOrder;
}
