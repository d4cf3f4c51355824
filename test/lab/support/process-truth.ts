/**
 * The truth about guest memory, read out of the QEMU process: quicker than QEMU's own migration stream, and possible where
 * that cannot be had because one is under way.
 */

import { closeSync, openSync, readSync } from 'node:fs';

import type { Monitor } from '../../../adapters/qemu/monitor.js';
import { qemuProcess } from '../../../adapters/qemu/peer-process.js';
import { RamBlocks } from '../../../adapters/kvm/memory/ram-blocks.js';
import type { Json } from '../../../src/types.js';
import type { LabMachine } from '../machine.js';

/** Node.js reads less than 2 GiB at once. */
const MAX_READ_BYTES = 1 << 30;

/**
 * All RAM blocks of a machine that is stopped.
 * @param old an earlier result, whose buffers are used again
 * @returns block name -> contents
 */
export async function processTruth(
  machine: LabMachine,
  old?: ReadonlyMap<string, Buffer>,
): Promise<Map<string, Buffer>> {
  const monitor: Monitor = {
    execute: async (command, args) => (await machine.qmp.command(command, { ...args })) as Json,
    onEvent: () => () => undefined,
    close: () => Promise.resolve(),
  };
  const blocks = await new RamBlocks(
    monitor,
    await qemuProcess(machine.pid, machine.name),
    machine.dir,
  ).list();
  const memory = openSync(`/proc/${machine.pid}/mem`, 'r');
  try {
    return new Map(
      blocks.map(({ id, host, sizeBytes }) => {
        const before = old?.get(id);
        const contents = before?.length === sizeBytes ? before : Buffer.alloc(sizeBytes);
        for (let at = 0; at < sizeBytes;) {
          const readBytes = Math.min(sizeBytes - at, MAX_READ_BYTES);
          at += readSync(memory, contents, at, readBytes, host + at);
        }
        return [id, contents];
      }),
    );
  } finally {
    closeSync(memory);
  }
}
