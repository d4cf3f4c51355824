import { closeSync, mkdirSync, openSync, readSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import type { KvmVm } from '../../adapters/kvm/kvm-vm.js';
import { PagemapScanTracker } from '../../adapters/kvm/trackers/pagemap-scan/tracker.js';
import { qemuProcess } from '../../adapters/qemu/peer-process.js';
import type { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { LabMachine } from './machine.js';
import { scratchDir } from './support/lab-files.js';
import { slowReads } from './support/slow-reads.js';

const ROUNDS = 6;
/** One direct read at a time, of other sectors each time, with time between them in which nothing marks its pages again. */
const READER =
  'n=0; while :; do n=$((n + 1)); dd if=/dev/vda of=/dev/null bs=64k count=1 skip=$((n * 7 % 400)) iflag=direct; ' +
  'usleep 200000; done';

interface Region {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly host: number;
}

const cleanUp: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const undo of cleanUp.splice(0).reverse()) await undo();
});

/** A guest that reads a slow disk directly; undefined where the disk cannot be made slow. */
async function start(): Promise<{ machine: LabMachine; vm: KvmVm } | undefined> {
  const dir = scratchDir('direct');
  const image = join(dir, 'direct.img');
  writeFileSync(image, randomBytes(32 << 20));
  const machine = await LabMachine.start({
    name: 'direct',
    dir,
    memoryMib: 128,
    devices: [],
    extraArgs: [
      ...['-drive', `file=${image},if=none,id=direct,format=raw,cache=none`],
      ...['-device', 'virtio-blk-pci,drive=direct'],
    ],
  });
  const slow = slowReads(machine.pid, image);
  if (slow === undefined) {
    await machine.destroy();
    process.stderr.write('skipped: no control group here limits the reads of a disk\n');
    return undefined;
  }
  cleanUp.push(async () => {
    await machine.destroy();
    await sleep(200);
    slow.remove();
  });
  await machine.guest(`(${READER}) </dev/null >/dev/null 2>&1 &`);
  const runtimeDir = join(dir, 'runtime');
  mkdirSync(runtimeDir, { mode: 0o700 });
  const vm = await attachKvm(machine.address, { runtimeDir });
  cleanUp.push(() => vm.close());
  await vm.memory.layout();
  return { machine, vm };
}

/** One that takes the VM for stopped all the time. */
async function carelessTracker(machine: LabMachine, vm: KvmVm): Promise<DirtyTracker> {
  const { regions } = vm.memory.reader().options as unknown as { regions: readonly Region[] };
  const runtimeDir = join(machine.dir, 'careless');
  mkdirSync(runtimeDir, { mode: 0o700 });
  return new PagemapScanTracker({
    process: await qemuProcess(machine.pid, 'the lab'),
    layout: await vm.memory.layout(),
    blocks: regions.map(({ host, pageCount }) => ({
      id: '',
      sizeBytes: pageCount * PAGE_SIZE_BYTES,
      host,
      backing: 'anonymous',
      backingPageBytes: PAGE_SIZE_BYTES,
      file: undefined,
    })),
    runtimeDir,
    quiet: {
      isHeld: () => true,
      isQuiet: () => true,
      disturbances: () => 0,
      whileQuiet: (work) => Promise.resolve(work()),
    },
  });
}

/** Copies like the engine: harvests and copies while the VM runs, and once more in the pause. @returns pages with outdated contents */
async function outdatedPages(machine: LabMachine, vm: KvmVm, tracker: DirtyTracker): Promise<number> {
  const { regions } = vm.memory.reader().options as unknown as { regions: readonly Region[] };
  const memory = openSync(`/proc/${machine.pid}/mem`, 'r');
  const read = (): readonly Buffer[] =>
    regions.map(({ host, pageCount }) => {
      const bytes = Buffer.alloc(pageCount * PAGE_SIZE_BYTES);
      for (let at = 0; at < bytes.length;)
        at += readSync(memory, bytes, at, Math.min(1 << 24, bytes.length - at), host + at);
      return bytes;
    });
  const copies = read().map((bytes) => Buffer.alloc(bytes.length));
  const copy = (dirty: DirtyBitmap): void =>
    regions.forEach(({ host, firstPage, pageCount }, i) => {
      for (let page = 0; page < pageCount; page++) {
        const at = page * PAGE_SIZE_BYTES;
        if (dirty.has(firstPage + page)) readSync(memory, copies[i]!, at, PAGE_SIZE_BYTES, host + at);
      }
    });
  try {
    await tracker.start();
    let outdated = 0;
    for (let round = 0; round < ROUNDS; round++) {
      for (let i = 0; i < 3 + round; i++) {
        const settled = await tracker.traits.settle();
        if (settled !== undefined) copy(settled.dirty);
        copy(tracker.collect().dirty);
        await sleep(150);
      }
      await vm.runState.pause();
      copy(tracker.collect().dirty);
      const truth = read();
      await vm.runState.resume();
      truth.forEach((bytes, i) => {
        for (let at = 0; at < bytes.length; at += PAGE_SIZE_BYTES) {
          if (bytes.compare(copies[i]!, at, at + PAGE_SIZE_BYTES, at, at + PAGE_SIZE_BYTES) !== 0) outdated++;
        }
      });
    }
    return outdated;
  } finally {
    closeSync(memory);
    tracker.close();
  }
}

describe('direct reads from disk that are in flight while pages are copied', () => {
  it('are not missed by the tracker, which clears no marks while the VM runs', async () => {
    const lab = await start();
    if (lab === undefined) return;
    const { machine, vm } = lab;
    expect((await vm.inspect()).hazards).toContainEqual(
      expect.objectContaining({ code: 'DIRECT_IO', effect: 'note' }),
    );
    expect(await outdatedPages(machine, vm, vm.memory.tracker('pagemap-scan'))).toBe(0);
    await machine.waitForProgress();
  });

  it('would be missed if it did', async () => {
    const lab = await start();
    if (lab === undefined) return;
    const { machine, vm } = lab;
    // Should this ever become zero, the kernel has changed and the care can go.
    expect(await outdatedPages(machine, vm, await carelessTracker(machine, vm))).toBeGreaterThan(0);
  });
});
