/**
 * A migration stream of QEMU in a file (`migrate exec:cat`, `migrate file:`, with mapped-ram as well),
 * compressed perhaps, as a checkpoint.
 */

import type { ImportedMachine, ImportRequest } from '../../src/hypervisor/intake.js';
import { CheckpointError } from '../../src/errors.js';
import { HeadedBytes, type ByteSource } from '../../src/hypervisor/byte-source.js';
import { RECOGNITION_BYTES } from '../../src/hypervisor/intake.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { compressionOf, type Compression } from '../qemu/packed/compressions.js';
import { unpacked } from '../qemu/packed/unpack.js';
import { putRunState, runStateIn } from '../qemu/stream/device-state.js';
import { readMappedPages, readMigrationStream, type RamBlock } from '../qemu/stream/reader.js';

/** A migration stream in a file that may have something else in front of it. */
export interface PackedStream extends Pick<ImportRequest, 'place' | 'signal'> {
  /** The stream from its start; called again for a mapped-ram file. */
  readonly open: () => Promise<ByteSource>;
  readonly compression: Compression | undefined;
  /** Place of the stream in its file. */
  readonly startByte: number;
}

export type StreamedMachine = Pick<ImportedMachine, 'deviceState' | 'runState'> & {
  readonly machineType: string;
};

/**
 * The stream does not say how its QEMU was started: such a checkpoint is restored into a QEMU that waits for
 * it (`restore --to`), or exported again.
 * @throws STREAM_MALFORMED, and what `unpacked` throws
 */
export async function importMigration({ open, place, signal }: ImportRequest): Promise<ImportedMachine> {
  const first = new HeadedBytes(open());
  const compression = compressionOf(await first.peek(RECOGNITION_BYTES));
  let unread: ByteSource | undefined = first;
  const { machineType, deviceState, runState } = await unpackMachine({
    open: () => {
      const source = unread ?? open();
      unread = undefined;
      return Promise.resolve(source);
    },
    compression,
    startByte: 0,
    place,
    signal,
  });
  return {
    identity: { hypervisor: 'kvm', name: '', uuid: '', machineType },
    machine: { machineType },
    deviceState,
    runState,
  };
}

/**
 * Puts the memory of a stream into its place. Its device state is made what Cairn stores of any VM: that of a
 * running one, beside which stands how it was found.
 * @throws STREAM_MALFORMED, and what `unpacked` throws
 */
export async function unpackMachine(packed: PackedStream): Promise<StreamedMachine> {
  const { place, startByte } = packed;
  let memory: ReturnType<ImportRequest['place']> | undefined;
  const firstPages = new Map<string, number>();
  const put = (block: RamBlock, pageOfBlock: number, bytes: Buffer | null): void => {
    const page = firstPages.get(block.id)! + pageOfBlock;
    if (bytes === null) memory!.putZero(page);
    else memory!.put(page, bytes);
  };
  const stream = await reading(packed, (bytes) =>
    readMigrationStream(
      bytes,
      {
        onBlocks: (blocks) => {
          const layout = layOut(blocks);
          for (const region of layout.regions) firstPages.set(region.id, region.firstPage);
          memory = place(layout);
        },
        onPage: put,
      },
      { takesMapped: true, startByte },
    ),
  );
  const { machineType, deviceBytes, deviceBlob } = stream;
  if (deviceBytes.length === 0) {
    throw new CheckpointError('STREAM_MALFORMED', 'the stream has no device state');
  }
  if (stream.isMapped) await reading(packed, (bytes) => readMappedPages(bytes, put, startByte));
  const runState = runStateIn(deviceBytes) === 'paused' ? 'paused' : 'running';
  if (runState === 'paused') putRunState(deviceBytes, 'running');
  return { machineType, deviceState: deviceBlob, runState };
}

async function reading<T>(
  { open, compression, signal }: PackedStream,
  read: (bytes: ByteSource) => Promise<T>,
): Promise<T> {
  const source = await open();
  return compression === undefined ? read(source) : unpacked(source, compression, signal, read);
}
