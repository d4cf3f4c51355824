/**
 * A guest without a hypervisor: memory in a file, and the record of a dirty tracker that outlives whoever armed it, as that of a
 * real QEMU does. Attach to it with `FakeVm` as often as you like.
 */

import {
  closeSync,
  copyFileSync,
  existsSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import type { RunState } from '../../src/hypervisor/run-state.js';
import type { VmHazard, VmIdentity } from '../../src/hypervisor/vm.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { PAGE_SIZE_BYTES, type JsonObject } from '../../src/types.js';
import type { FakeReaderOptions } from './fake-guest-reader.js';

export interface FakeGuestOptions {
  readonly name?: string;
  readonly uuid?: string;
  readonly regions?: readonly { readonly id: string; readonly sizeBytes: number }[];
  readonly disks?: readonly VmDisk[];
  readonly hazards?: readonly VmHazard[];
  /** False: its kernel has no tracker, only `compare` is left. */
  readonly canTrack?: boolean;
}

let started = 0;

export class FakeGuest {
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly disks: readonly VmDisk[];
  readonly hazards: VmHazard[];
  readonly canTrack: boolean;
  /** Trait of the guest's trackers, see `TrackerTraits.isLastCollectEnough`. */
  isLastCollectEnough = false;
  /** The tracker has lost its record when that many checkpoints have begun. */
  asksUntilRecordIsLost = Infinity;
  state: RunState = 'running';
  deviceState = new Uint8Array([0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3, 1, 2, 3, 0]);
  isFrozen = false;
  /** Names of disk snapshots that exist. */
  readonly snapshots = new Set<string>();
  /** Runs of every method of every attached VM, in order. */
  readonly calls: string[] = [];
  #layout: MemoryLayout;
  /** What a tracker with a picture hands to the workers. */
  readonly picturePath: string;
  readonly #dir: string;
  #reader: FakeReaderOptions;
  #memory: number;
  #moves = 0;
  #armings = 0;
  #token: string | undefined;
  /** Written since the last collect; meaningful while a tracker is armed. */
  #dirty: DirtyBitmap;
  /** Without memory behind them; they read as zero. */
  #absent: DirtyBitmap;

  constructor(options: FakeGuestOptions = {}) {
    const number = ++started;
    this.identity = {
      hypervisor: 'fake',
      name: options.name ?? `guest${number}`,
      uuid: options.uuid ?? '',
      machineType: 'fake-1.0',
      instance: `${process.pid}:${number}`,
    };
    this.machine = { argv: ['fake', `-name=${this.identity.name}`] };
    this.disks = options.disks ?? [];
    this.hazards = [...(options.hazards ?? [])];
    this.canTrack = options.canTrack ?? true;
    this.#layout = layOut(
      options.regions ?? [
        { id: 'ram', sizeBytes: 1000 * PAGE_SIZE_BYTES },
        { id: 'rom', sizeBytes: 3 * PAGE_SIZE_BYTES },
      ],
    );
    this.#dir = mkdtempSync(join(tmpdir(), 'cairn-fake-guest-'));
    this.picturePath = join(this.#dir, 'picture');
    writeFileSync(this.picturePath, '');
    this.#reader = {
      memoryPath: join(this.#dir, 'memory'),
      faultPath: join(this.#dir, 'fault'),
      gonePath: join(this.#dir, 'gone'),
    };
    this.#memory = openSync(this.reader.memoryPath, 'w+');
    ftruncateSync(this.#memory, this.#layout.pageSpan * PAGE_SIZE_BYTES);
    this.#dirty = new DirtyBitmap(this.#layout.pageSpan);
    this.#absent = new DirtyBitmap(this.#layout.pageSpan);
    for (const { firstPage, pageCount } of this.#layout.regions) this.#absent.setRange(firstPage, pageCount);
  }

  /** Where its memory is to be read from now. */
  get reader(): FakeReaderOptions {
    return this.#reader;
  }

  get layout(): MemoryLayout {
    return this.#layout;
  }

  get isGone(): boolean {
    return existsSync(this.reader.gonePath);
  }

  /** The guest writes to a page, from `offset` on. Only a running one does. */
  write(page: number, bytes: Uint8Array, offset = 0): void {
    if (this.state !== 'running') throw new Error('a stopped guest writes nothing');
    this.#write(page, bytes, offset);
  }

  /** Writes as device emulation does while the vCPUs stand still. */
  writeAsDevice(page: number, bytes: Uint8Array): void {
    this.#write(page, bytes, 0);
  }

  /** Takes the memory of a page away, as a balloon does. */
  discard(page: number): void {
    this.#write(page, new Uint8Array(PAGE_SIZE_BYTES), 0);
    this.#absent.set(page);
  }

  /** Caller owns the page. */
  read(page: number): Uint8Array {
    const bytes = new Uint8Array(PAGE_SIZE_BYTES);
    readSync(this.#memory, bytes, 0, PAGE_SIZE_BYTES, page * PAGE_SIZE_BYTES);
    return bytes;
  }

  /** All of the flat page space. Caller owns it. */
  snapshot(): Uint8Array {
    const bytes = new Uint8Array(this.#layout.pageSpan * PAGE_SIZE_BYTES);
    readSync(this.#memory, bytes, 0, bytes.length, 0);
    return bytes;
  }

  /** The picture is the memory of this moment. */
  fillPicture(): void {
    writeFileSync(this.picturePath, this.snapshot());
  }

  spoilPicture(): void {
    writeFileSync(this.picturePath, new Uint8Array(this.#layout.pageSpan * PAGE_SIZE_BYTES).fill(0xee));
  }

  /** Hotplug: the regions from now on. Contents of regions before the first change stay. */
  setRegions(regions: readonly { readonly id: string; readonly sizeBytes: number }[]): void {
    this.#layout = layOut(regions);
    ftruncateSync(this.#memory, this.#layout.pageSpan * PAGE_SIZE_BYTES);
    this.#dirty = new DirtyBitmap(this.#layout.pageSpan);
    this.#absent = new DirtyBitmap(this.#layout.pageSpan);
    // What is tracked no longer is what is there.
    this.#token = undefined;
  }

  /** The same regions in another place: whoever goes on reading the old one sees what was, not what is. */
  move(): void {
    const memoryPath = join(this.#dir, `memory-${++this.#moves}`);
    copyFileSync(this.reader.memoryPath, memoryPath);
    closeSync(this.#memory);
    this.#memory = openSync(memoryPath, 'r+');
    this.#reader = { ...this.#reader, memoryPath };
  }

  /** Makes reads of guest memory fail, or work again. */
  failReads(fail: boolean): void {
    this.#flag(this.reader.faultPath, fail);
  }

  /** The hypervisor process is killed. */
  die(): void {
    this.#flag(this.reader.gonePath, true);
  }

  /** Somebody else disarms the tracker: the next start arms it anew. */
  loseTracker(): void {
    this.#token = undefined;
  }

  /** @returns token of the arming */
  arm(): string {
    if (this.#token === undefined) {
      this.#token = `fake:${this.identity.instance}:${++this.#armings}`;
      for (const { firstPage, pageCount } of this.#layout.regions) this.#dirty.setRange(firstPage, pageCount);
    }
    return this.#token;
  }

  get token(): string | undefined {
    return this.#token;
  }

  /** Reads and clears. Caller owns both. */
  harvest(): { readonly dirty: DirtyBitmap; readonly absent: DirtyBitmap } {
    const dirty = this.#dirty.clone();
    this.#dirty.clear();
    return { dirty, absent: this.#absent.clone() };
  }

  /** Pages without memory. Caller owns the copy. */
  get absent(): DirtyBitmap {
    return this.#absent.clone();
  }

  dispose(): void {
    closeSync(this.#memory);
    rmSync(this.#dir, { recursive: true, force: true });
  }

  #write(page: number, bytes: Uint8Array, offset: number): void {
    if (offset + bytes.length > PAGE_SIZE_BYTES) throw new RangeError('a write stays within its page');
    writeSync(this.#memory, bytes, 0, bytes.length, page * PAGE_SIZE_BYTES + offset);
    this.#dirty.set(page);
    const present = new DirtyBitmap(this.#layout.pageSpan);
    present.set(page);
    this.#absent.andNot(present);
  }

  #flag(path: string, on: boolean): void {
    if (on) writeFileSync(path, '');
    else rmSync(path, { force: true });
  }
}
