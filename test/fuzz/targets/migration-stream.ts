/**
 * Migration streams of QEMU: as an import unpacks them into a memory file, and as the receiver of `qmp-stream` takes them,
 * which knows beforehand how large the memory is. What is accepted is written as a stream of ours and read once more.
 */

import { closeSync, ftruncateSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';

import { importMigration } from '../../../adapters/kvm/import.js';
import { receiveStream } from '../../../adapters/kvm/trackers/qmp-stream/receive.js';
import { allocateShared } from '../../../adapters/kvm/trackers/qmp-stream/receiver-messages.js';
import { deviceSections } from '../../../adapters/qemu/stream/device-state.js';
import { readMigrationStream } from '../../../adapters/qemu/stream/reader.js';
import { writeMigrationStream } from '../../../adapters/qemu/stream/writer.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { PageChunk } from '../../../src/hypervisor/restore.js';
import { MemoryFile } from '../../../src/intake/memory-file.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { mappedMigration } from '../../support/import-files.js';
import { mutateBytes } from '../mutate-bytes.js';
import { describedMigration, smallMigration, SMALL_LAYOUT } from '../small-machines.js';
import { must, type OpenTarget } from '../target.js';

/** The file of a guest may be as long as this without any input for it. */
const FREE_FILE_BYTES = 16 * 2 ** 30;
const FILE_BYTES_FOR_EACH = 64 * PAGE_SIZE_BYTES;
/** Written once more up to this size. */
const MAX_REWRITTEN_BYTES = 64 << 20;

// eslint-disable-next-line @typescript-eslint/require-await -- a stream is read asynchronously
async function* pieces(input: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < input.length; at += size) yield input.subarray(at, at + size);
}

export const openTarget: OpenTarget = async (workDir) => {
  const path = join(workDir, 'memory');
  const staging = openSync(join(workDir, 'staging'), 'wx+');
  const shared = allocateShared(SMALL_LAYOUT.pageSpan);

  async function imported(input: Uint8Array): Promise<string> {
    let memory: MemoryFile | undefined;
    try {
      const machine = await importMigration({
        format: 'qemu',
        open: () => pieces(input, 4096),
        place: (layout) => (memory = new MemoryFile(layout, path)),
      });
      must(memory !== undefined, 'an import has memory');
      memory.checkFilled();
      await mustComeBack(memory, machine.deviceState, machine.identity.machineType);
      return `regions ${memory.layout.regions.length}`;
    } finally {
      memory?.close();
      const sizeBytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
      rmSync(path, { force: true });
      must(sizeBytes <= FREE_FILE_BYTES + input.length * FILE_BYTES_FOR_EACH, `a file of ${sizeBytes} bytes`);
    }
  }

  /** With some memory of another size it says so; with this one it takes the pages. */
  async function received(input: Uint8Array): Promise<string> {
    ftruncateSync(staging, 0);
    ftruncateSync(staging, SMALL_LAYOUT.pageSpan * PAGE_SIZE_BYTES);
    const setup = { staging, layout: SMALL_LAYOUT, shared, allowMissing: true };
    const { missingPages } = await receiveStream(pieces(input, 1000), setup);
    return `missing ${missingPages > 0}`;
  }

  process.on('exit', () => closeSync(staging));
  return {
    seeds: [await smallMigration(), await describedMigration(), await mappedMigration()],
    mutate: mutateBytes,
    run: async (input) => {
      let failure: { readonly error: unknown } | undefined;
      const first = await received(input).catch((error: unknown) => {
        failure = { error };
        return 'refused';
      });
      const second = await imported(input);
      // What one of them refuses because of the memory's size, the other may take.
      if (failure !== undefined) throw failure.error;
      return `${first} ${second}`;
    },
  };
};

async function mustComeBack(memory: MemoryFile, deviceState: Uint8Array, machineType: string): Promise<void> {
  if (memory.layout.sizeBytes > MAX_REWRITTEN_BYTES) return;
  const content = {
    machineType,
    layout: memory.layout,
    deviceSections: deviceSections(deviceState),
    pages: () => pagesIn(memory),
  };
  let pages = 0;
  const again = await readMigrationStream(writeMigrationStream(content), { onPage: () => pages++ });
  must(pages === memory.layout.sizeBytes / PAGE_SIZE_BYTES, 'every page comes back');
  must(again.machineType === machineType, 'the machine type comes back');
  must(
    again.blocks.every(({ id, sizeBytes }, i) => sameRegion(memory.layout, i, id, sizeBytes)),
    'blocks come back',
  );
}

function sameRegion(layout: MemoryLayout, i: number, id: string, sizeBytes: number): boolean {
  return layout.regions[i]?.id === id && layout.regions[i].sizeBytes === sizeBytes;
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesIn({ layout }: MemoryFile): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of layout.regions) yield { firstPage, pageCount, bytes: null };
}
