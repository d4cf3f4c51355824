/** Checkpoints for restore tests, made without the engine: memory from QEMU's own migration file, devices from QMP. */

import { createReadStream, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { machineFacts } from '../../adapters/kvm/inspect/machine-facts.js';
import { qemuBehind } from '../../adapters/qemu/peer-process.js';
import { QmpClient } from '../../adapters/qemu/qmp-client.js';
import { readMigrationStream, type MigrationStream } from '../../adapters/qemu/stream/reader.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import type { LabMachine } from './machine.js';
import { migrateToFile } from './support/ground-truth.js';

const PAGE = 4096;
const CHUNK_PAGES = 256;

export interface Recorded {
  readonly source: CheckpointSource;
  /** RAM blocks at the checkpoint. */
  readonly memory: ReadonlyMap<string, Buffer>;
  /** QEMU's own stream of the same instant, read by our reader. */
  readonly genuine: MigrationStream;
}

/** The machine is stopped here and stays so (state postmigrate). `inPause` runs before its disks are given up. */
export async function record(
  machine: LabMachine,
  inPause: () => Promise<readonly DiskSnapshot[]> = () => Promise.resolve([]),
): Promise<Recorded> {
  const { cwdMachine, machineType } = await factsOf(machine);
  await machine.qmp.command('stop');
  const disks = await inPause();
  const blobPath = join(machine.dir, 'devices');
  await machine.qmp.command('xen-save-devices-state', { filename: blobPath, live: false });
  const blob = readFileSync(blobPath);
  rmSync(blobPath);
  const path = join(machine.dir, 'recorded.mig');
  await migrateToFile(machine, path);
  const memory = new Map<string, Buffer>();
  const genuine = await readMigrationStream(createReadStream(path), {
    onBlocks: (blocks) => blocks.forEach(({ id, sizeBytes }) => memory.set(id, Buffer.alloc(sizeBytes))),
    onPage: ({ id }, page, bytes) => {
      if (bytes === null) memory.get(id)!.fill(0, page * PAGE, (page + 1) * PAGE);
      else bytes.copy(memory.get(id)!, page * PAGE);
    },
  });
  rmSync(path);
  const layout = layOut(genuine.blocks);
  // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous, the pages are at hand
  async function* pages(): AsyncGenerator<PageChunk> {
    for (const region of layout.regions) yield* chunks(memory.get(region.id)!, region.firstPage);
  }
  const source: CheckpointSource = {
    checkpointId: 'c0ffee0123456789',
    hypervisor: 'kvm',
    machine: cwdMachine,
    machineType,
    layout,
    disks,
    deviceState: () => Promise.resolve(blob),
    pages,
    pagesAsStored: pages,
  };
  return { source, memory, genuine };
}

async function factsOf(machine: LabMachine): Promise<{
  readonly cwdMachine: CheckpointSource['machine'];
  readonly machineType: string;
}> {
  const client = await QmpClient.connect(machine.qmpPath);
  try {
    const qemu = await qemuBehind(client.descriptor, machine.qmpPath);
    const facts = await machineFacts(client, qemu, machine.qmpPath);
    return { cwdMachine: facts.machine, machineType: facts.identity.machineType };
  } finally {
    await client.close();
  }
}

function* chunks(memory: Buffer, firstPage: number): Generator<PageChunk> {
  const pageCount = memory.length / PAGE;
  const isZero = (page: number): boolean =>
    memory.compare(ZERO_PAGE, 0, PAGE, page * PAGE, (page + 1) * PAGE) === 0;
  for (let page = 0; page < pageCount;) {
    const zero = isZero(page);
    let end = page + 1;
    while (end < pageCount && end - page < CHUNK_PAGES && isZero(end) === zero) end++;
    const bytes = zero ? null : memory.subarray(page * PAGE, end * PAGE);
    yield { firstPage: firstPage + page, pageCount: end - page, bytes };
    page = end;
  }
}

const ZERO_PAGE = Buffer.alloc(PAGE);
