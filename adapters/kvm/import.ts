/**
 * A migration stream of QEMU in a file (`migrate exec:cat`, `migrate file:` without mapped-ram) as a
 * checkpoint.
 */

import type { ImportedMachine, ImportRequest } from '../../src/hypervisor/intake.js';
import { CheckpointError } from '../../src/errors.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { SECTION, STREAM_HEADER_BYTES, STREAM_MAGIC, STREAM_VERSION } from '../qemu/stream/format.js';
import { readMigrationStream } from '../qemu/stream/reader.js';

/**
 * The stream does not say how its QEMU was started: such a checkpoint is restored into a QEMU that waits for
 * it (`restore --to`), or exported again.
 * @throws STREAM_MALFORMED
 */
export async function importMigration({ open, place }: ImportRequest): Promise<ImportedMachine> {
  let memory: ReturnType<ImportRequest['place']> | undefined;
  const firstPages = new Map<string, number>();
  const stream = await readMigrationStream(open(), {
    onBlocks: (blocks) => {
      const layout = layOut(blocks);
      for (const region of layout.regions) firstPages.set(region.id, region.firstPage);
      memory = place(layout);
    },
    onPage: (block, pageOfBlock, bytes) => {
      const page = firstPages.get(block.id)! + pageOfBlock;
      if (bytes === null) memory!.putZero(page);
      else memory!.put(page, bytes);
    },
  });
  if (stream.deviceBytes.length === 0) {
    throw new CheckpointError('STREAM_MALFORMED', 'the stream has no device state');
  }
  const header = Buffer.alloc(STREAM_HEADER_BYTES);
  header.writeUInt32BE(STREAM_MAGIC, 0);
  header.writeUInt32BE(STREAM_VERSION, 4);
  return {
    identity: { hypervisor: 'kvm', name: '', uuid: '', machineType: stream.machineType },
    machine: { machineType: stream.machineType },
    deviceState: Buffer.concat([header, stream.deviceBytes, Buffer.from([SECTION.EOF])]),
  };
}
