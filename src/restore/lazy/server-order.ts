/** What a page server's process is told: an order as it is started, one argument of JSON; which VM it fills, and words, as lines. */

import type { ServedVm } from '../../hypervisor/page-server.js';

export interface ServerOrder {
  readonly repository: string;
  readonly checkpointId: string;
  /** URL of the adapter's module. */
  readonly modulePath: string;
  readonly vmName: string;
  readonly bytesPerSecond: number;
  readonly runtimeDir: string;
  /** There is a connection to the VM, on descriptor `STREAM_DESCRIPTOR`. Otherwise it takes over. */
  readonly hasStream: boolean;
}

export const STREAM_DESCRIPTOR = 3;

const VM_LINE = 'vm ';

export function vmLine({ vm, vmAddress, args }: ServedVm): string {
  return `${VM_LINE}${JSON.stringify({ vm, vmAddress, args })}`;
}

/** @returns undefined for a line that is another one */
export function readVmLine(line: string): ServedVm | undefined {
  return line.startsWith(VM_LINE) ? (JSON.parse(line.slice(VM_LINE.length)) as ServedVm) : undefined;
}

export function readOrder(argv: readonly string[]): ServerOrder {
  return JSON.parse(argv[2] ?? '') as ServerOrder;
}
