/** Gives a new QEMU, which waits for a stream, the whole checkpoint. */

import { closeSync } from 'node:fs';
import { Socket } from 'node:net';

import { openSocketPair } from '../../../src/ffi/socket-pair.js';
import type { CheckpointSource, PageChunk, RestoreRequest } from '../../../src/hypervisor/restore.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import type { QmpClient } from '../../qemu/qmp-client.js';
import { pushStream } from '../../qemu/stream/push.js';
import { writeMigrationStream } from '../../qemu/stream/writer.js';
import { OwnFailure } from './own-failure.js';

/** Of the descriptor, among those that QEMU's monitor was given. */
const STREAM_NAME = 'cairn-stream';

export interface WholeStream extends Pick<RestoreRequest, 'signal' | 'onProgress'> {
  readonly source: CheckpointSource;
  readonly sections: Uint8Array;
  /** Command line of the QEMU. */
  readonly options: readonly QemuOption[];
  /** Runs once every page was read and written. */
  readonly beforeDeviceState: () => Promise<void>;
}

/** @returns bytes sent @throws OwnFailure for what is not QEMU's, and what the socket and the monitor throw */
export async function sendStream(monitor: QmpClient, stream: WholeStream): Promise<number> {
  return sendInto(await openStream(monitor), stream);
}

/**
 * Has QEMU read the stream from one end of a pair of sockets. It gets that end open: another user's QEMU, or
 * one in a folder of its own (-chroot), could not open a socket of Cairn's.
 */
export async function openStream(monitor: QmpClient): Promise<Socket> {
  const { ours, theirs } = openSocketPair(0);
  // From here on it is closed with the socket.
  const socket = new Socket({ fd: ours, readable: false, writable: true });
  // Whoever writes listens too; between writes an error must not end the process.
  socket.on('error', () => undefined);
  try {
    await monitor.execute('getfd', { fdname: STREAM_NAME }, { passDescriptor: theirs });
    await monitor.execute('migrate-incoming', { uri: `fd:${STREAM_NAME}` });
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    closeSync(theirs);
  }
}

async function sendInto(
  socket: Socket,
  { source, sections, options, beforeDeviceState, signal, onProgress }: WholeStream,
): Promise<number> {
  try {
    const stream = writeMigrationStream(
      {
        machineType: source.machineType,
        layout: source.layout,
        deviceSections: sections,
        pages: (aborted) => ownPages(source, aborted),
      },
      {
        omitZeroPagesOf: freshMemory(options),
        beforeDeviceState,
        onProgress: (done) => onProgress?.(done, source.layout.sizeBytes),
        ...(signal === undefined ? {} : { signal }),
      },
    );
    return await pushStream(stream, socket, signal);
  } finally {
    socket.destroy();
  }
}

/**
 * Main memory of a new QEMU is all zero: QEMU skips loading ROM images at reset while it waits for a stream.
 * Memory in a file keeps what the file held.
 */
function freshMemory(options: readonly QemuOption[]): (regionId: string) => boolean {
  const isFileBacked = options.some(
    ({ name, value }) => name === 'mem-path' || value?.includes('memory-backend-file') === true,
  );
  return (regionId) => regionId === 'pc.ram' && !isFileBacked;
}

async function* ownPages(
  source: CheckpointSource,
  signal: AbortSignal | undefined,
): AsyncGenerator<PageChunk> {
  try {
    yield* source.pagesAsStored(signal);
  } catch (error) {
    throw new OwnFailure(error);
  }
}
