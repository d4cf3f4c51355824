/**
 * Dirty tracking of an unmodified QEMU by the host kernel: a userfaultfd opened inside QEMU write-protects
 * all guest memory asynchronously, and PAGEMAP_SCAN reads and clears the marks from outside. The descriptor
 * stays open in QEMU, so the record goes on when this process ends, and the next one takes it over.
 *
 * It sees every write that goes through QEMU's page tables: vCPUs (KVM and TCG), QEMU's device emulation,
 * system calls that write for QEMU. It does not see other processes that map the same memory, nor devices
 * with DMA of their own; the adapter reports those as hazards. Direct reads from disk are seen when they are
 * submitted: while a VM has such disks and runs, `collect` reads and does not clear (see `direct-io.ts`).
 * Sources: see `userfaultfd.ts` and `scan.ts`.
 */

import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { duplicateOf } from '../../../../src/ffi/foreign-descriptor.js';
import { errnoName } from '../../../../src/ffi/libc.js';
import {
  TRACKS_WRITES,
  type DirtyTracker,
  type Harvest,
  type TrackerTraits,
} from '../../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import { FileHoles } from '../../memory/file-holes.js';
import { findDirectIo } from '../../inspect/direct-io.js';
import { checkStillMapped } from '../../memory/mapped-blocks.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import { readMemory } from '../../memory/process-memory.js';
import type { QuietVm } from '../quiet-vm.js';
import type { RamBlock } from '../../memory/ram-blocks.js';
import {
  armingPath,
  describe,
  inodeOf,
  newToken,
  readArming,
  removeArming,
  unusedDescriptors,
  writeArming,
  writeTrackingDescriptors,
  type Arming,
  type RemoteDescriptor,
  type TrackedRange,
} from './arming.js';
import { discardsAreReported } from './discards.js';
import { isTracked, scanWritten, visitUnpopulated } from '../../memory/pagemap.js';
import { SpanFinder } from './span-finder.js';
import { PAGEMAP_SCAN_KIND, pagemapScanReport } from './support.js';
import { callInQemu } from './tracer/tracer.js';
import {
  enableWriteTracking,
  registerRange,
  SYS_USERFAULTFD,
  unregisterRange,
  USERFAULTFD_FLAGS,
} from './userfaultfd.js';

const SYS_CLOSE = 3;
/** Time between opening a userfaultfd and choosing its features, for somebody who is in the middle of it. */
const UNUSED_MS = 250;

export interface PagemapScanOptions {
  readonly process: QemuProcess;
  readonly layout: MemoryLayout;
  /** One for each region of the layout, in its order. */
  readonly blocks: readonly RamBlock[];
  readonly runtimeDir: string;
  readonly quiet: QuietVm;
}

interface Armed {
  readonly pagemap: number;
  /** Our duplicate of QEMU's descriptor. */
  readonly userfaultfd: number;
  readonly remote: RemoteDescriptor;
  readonly token: string;
  readonly holes: readonly (FileHoles | undefined)[];
  readonly finder: SpanFinder;
  /** See `discards.ts`. */
  readonly discardsAreReported: boolean;
}

export class PagemapScanTracker implements DirtyTracker {
  readonly kind = PAGEMAP_SCAN_KIND;
  readonly traits: TrackerTraits = {
    ...TRACKS_WRITES,
    // A scan walks all page tables: 0.2 to 0.5 ms for each GiB of small pages, in the pause.
    isLastCollectEnough: () => this.#hasCleared,
    settle: () => this.#settle(),
  };
  readonly #options: PagemapScanOptions;
  readonly #owed: DirtyBitmap;
  readonly #absent: DirtyBitmap;
  #armed: Armed | undefined;
  #disturbances = 0;
  #hasCleared = false;

  constructor(options: PagemapScanOptions) {
    this.#options = options;
    this.#owed = new DirtyBitmap(options.layout.pageSpan);
    this.#absent = new DirtyBitmap(options.layout.pageSpan);
  }

  get token(): string {
    return this.#on().token;
  }

  async start(): Promise<void> {
    if (this.#armed !== undefined) return;
    const { process, blocks, runtimeDir } = this.#options;
    const report = pagemapScanReport(process.pid);
    if (!report.usable) {
      throw new CheckpointError('TRACKER_UNAVAILABLE', `tracker ${this.kind}: ${report.reason}`, {
        ...(report.remedy === undefined ? {} : { hint: report.remedy }),
      });
    }
    const path = armingPath(runtimeDir, process);
    const known = await readArming(path);
    const pagemap = openPagemap(process.pid);
    let userfaultfd: number | undefined;
    try {
      const unused = unusedDescriptors(process.pid).filter(({ inode }) => inode !== known?.inode);
      const present = await this.#takeOver(pagemap, known);
      const remote = present ?? (await openRemote(process.pid));
      const { descriptor, inode } = remote;
      const unbroken =
        known?.inode === inode && known.descriptor === descriptor && this.#covered(pagemap, known);
      const token = unbroken ? known.token : newToken(process);
      // Written first: should this process end half-way, the next attempt finds the descriptor instead of
      // opening one more.
      const arming = { descriptor, inode, token, ranges: unbroken ? known.ranges : this.#ranges() };
      try {
        await writeArming(path, arming);
        userfaultfd = duplicate(process.pid, remote);
        if (describe(process.pid, descriptor)?.features === 0n) chooseFeatures(userfaultfd);
      } catch (error) {
        // Opened a moment ago and good for nothing: leave nothing behind in QEMU.
        if (present === undefined) {
          await closeRemote(process.pid, remote);
          removeArming(path);
        }
        throw error;
      }
      this.#register(pagemap, userfaultfd);
      await closeUnused(process.pid, unused);
      const holes = blocks.map((block) => FileHoles.open(process.pid, block));
      const sizeBytes = blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
      const finder = new SpanFinder({ sizeBytes });
      this.#armed = {
        pagemap,
        userfaultfd,
        remote: { descriptor, inode },
        token,
        holes,
        finder,
        discardsAreReported: discardsAreReported(),
      };
    } catch (error) {
      closeSync(pagemap);
      if (userfaultfd !== undefined) closeSync(userfaultfd);
      throw error;
    }
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  collect(): Harvest {
    const { process, layout, quiet } = this.#options;
    const clears = quiet.isHeld() || findDirectIo(process.pid) === undefined;
    const { written, unpopulated } = this.#scan(clears);
    if (quiet.disturbances() !== this.#disturbances) markAll(written, layout);
    this.#disturbances = quiet.disturbances();
    this.#hasCleared = clears;
    // What had no memory behind it and was not written since still reads as zero, populated by a read or not.
    this.#absent.clearRuns(written.toRuns());
    this.#absent.or(unpopulated);
    written.setRuns(this.#owed.toRuns());
    this.#owed.clear();
    return { dirty: written, absent: this.#absent.clone() };
  }

  peek(): Harvest {
    const { layout, quiet } = this.#options;
    const { written, unpopulated } = this.#scan(false);
    if (quiet.disturbances() !== this.#disturbances) markAll(written, layout);
    const absent = this.#absent.clone();
    absent.clearRuns(written.toRuns());
    absent.or(unpopulated);
    written.setRuns(this.#owed.toRuns());
    return { dirty: written, absent };
  }

  /** Only where `collect` does not clear while the VM runs. */
  putBack(dirty: DirtyBitmap): void {
    this.#owed.or(dirty);
  }

  /** Ends tracking, and closes the descriptor in QEMU as well. */
  async stop(): Promise<void> {
    const armed = this.#armed;
    if (armed === undefined) return;
    const { process, runtimeDir } = this.#options;
    const path = armingPath(runtimeDir, process);
    const known = await readArming(path);
    for (const range of known?.ranges ?? this.#ranges()) {
      unregisterRange(armed.userfaultfd, range.start, range.sizeBytes);
    }
    this.close();
    await closeRemote(process.pid, armed.remote);
    // Last: as long as the descriptor may be there, the next Cairn has to find it.
    removeArming(path);
  }

  close(): void {
    const armed = this.#armed;
    this.#armed = undefined;
    if (armed === undefined) return;
    closeSync(armed.userfaultfd);
    closeSync(armed.pagemap);
    armed.finder.close();
    for (const holes of armed.holes) holes?.close();
  }

  /** @returns what was written, or was given back without a mark, and what has no memory behind it */
  #scan(clears: boolean): { readonly written: DirtyBitmap; readonly unpopulated: DirtyBitmap } {
    const armed = this.#on();
    const { process, layout, blocks } = this.#options;
    const written = new DirtyBitmap(layout.pageSpan);
    const unpopulated = new DirtyBitmap(layout.pageSpan);
    // A scan of what is gone finds nothing and says nothing.
    checkStillMapped(process.pid, armed.pagemap, blocks);
    checkStillOurs(process.pid, armed.remote, blocks[0]!.host);
    try {
      layout.regions.forEach((region, i) => {
        const { host, backing } = blocks[i]!;
        const mark = (bitmap: DirtyBitmap, from: number, to: number): void =>
          bitmap.setRange(region.firstPage + from / PAGE_SIZE_BYTES, (to - from) / PAGE_SIZE_BYTES);
        const spans = armed.finder.find(armed.pagemap, host, host + region.sizeBytes);
        scanWritten(armed.pagemap, spans, clears, (range) => {
          const from = range.start - host;
          const to = range.end - host;
          mark(written, from, to);
          if (!range.unpopulated) return;
          if (backing === 'anonymous') mark(unpopulated, from, to);
          armed.holes[i]?.visit(from, to, (start, end) => mark(unpopulated, start, end));
        });
        if (armed.discardsAreReported || backing !== 'anonymous') return;
        // After the marks were read: what is given back from here on is a hole in the next look as well.
        visitUnpopulated(armed.pagemap, host, host + region.sizeBytes, (start, end) =>
          mark(unpopulated, start - host, end - host),
        );
      });
    } catch (error) {
      // What this scan has cleared so far is nowhere else.
      if (clears) {
        this.#owed.or(written);
        this.#absent.andNot(written);
      }
      throw error;
    }
    if (!armed.discardsAreReported) {
      const discarded = unpopulated.clone();
      discarded.andNot(this.#absent);
      written.or(discarded);
    }
    return { written, unpopulated };
  }

  async #settle(): Promise<Harvest | undefined> {
    const { process, quiet } = this.#options;
    return findDirectIo(process.pid) === undefined ? undefined : quiet.whileQuiet(() => this.collect());
  }

  #on(): Armed {
    if (this.#armed === undefined)
      throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
    return this.#armed;
  }

  #ranges(): readonly TrackedRange[] {
    const { layout, blocks } = this.#options;
    return layout.regions.map(({ id, sizeBytes }, i) => ({ id, start: blocks[i]!.host, sizeBytes }));
  }

  /** True when all present ranges have been tracked without a gap since `known` was written. */
  #covered(pagemap: number, known: Arming): boolean {
    const before = new Map(known.ranges.map((range) => [range.id, range]));
    return this.#ranges().every(({ id, start, sizeBytes }) => {
      const range = before.get(id);
      return (
        range?.start === start &&
        range.sizeBytes === sizeBytes &&
        isTracked(pagemap, start, start + sizeBytes)
      );
    });
  }

  /**
   * The descriptor that our state file names, undefined when it is not there any more. Any other one that
   * tracks our memory was armed by a Cairn with another runtime folder, or before this one was lost. It is
   * disarmed: two that read the marks of one descriptor would clear them for each other, and whoever armed it
   * finds it gone and compares all pages.
   */
  async #takeOver(pagemap: number, known: Arming | undefined): Promise<RemoteDescriptor | undefined> {
    const { pid } = this.#options.process;
    if (known !== undefined && describe(pid, known.descriptor)?.inode === known.inode) return known;
    const ranges = this.#ranges().filter(({ start, sizeBytes }) =>
      isTracked(pagemap, start, start + sizeBytes),
    );
    if (ranges.length === 0) return undefined;
    for (const other of writeTrackingDescriptors(pid)) await disarm(pid, other, ranges);
    return undefined;
  }

  #register(pagemap: number, userfaultfd: number): void {
    for (const { id, start, sizeBytes } of this.#ranges()) {
      const errno = registerRange(userfaultfd, start, sizeBytes);
      if (errno === '') continue;
      if (errno === 'EBUSY') {
        throw unavailable(
          `memory region ${id} is watched by another userfaultfd`,
          'wait until an incoming postcopy migration or a background snapshot is over; stop other tools that track this VM',
        );
      }
      throw unavailable(`memory region ${id} cannot be write-protected (${errno})`);
    }
    if (!this.#ranges().every(({ start, sizeBytes }) => isTracked(pagemap, start, start + sizeBytes))) {
      throw unavailable('the kernel does not track all of the memory that was registered');
    }
  }
}

function markAll(bitmap: DirtyBitmap, { regions }: MemoryLayout): void {
  for (const { firstPage, pageCount } of regions) bitmap.setRange(firstPage, pageCount);
}

function openPagemap(pid: number): number {
  try {
    return openSync(`/proc/${pid}/pagemap`, 'r');
  } catch (cause) {
    const code = systemErrorCode(cause);
    if (code === 'ENOENT' || code === 'ESRCH')
      throw new CheckpointError('VM_GONE', `process ${pid} has ended`, { cause });
    throw new CheckpointError('VM_PERMISSION', `cannot open /proc/${pid}/pagemap: ${describeError(cause)}`, {
      cause,
      hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE',
    });
  }
}

/** Ends the tracking of those ranges that this descriptor tracks, and closes it in QEMU if there were any. */
async function disarm(pid: number, remote: RemoteDescriptor, ranges: readonly TrackedRange[]): Promise<void> {
  const duplicated = duplicate(pid, remote);
  try {
    // Only the descriptor that a range belongs to may register it once more.
    const own = ranges.filter(({ start, sizeBytes }) => registerRange(duplicated, start, sizeBytes) === '');
    if (own.length === 0) return;
    for (const { start, sizeBytes } of own) unregisterRange(duplicated, start, sizeBytes);
  } finally {
    closeSync(duplicated);
  }
  await closeRemote(pid, remote);
}

/**
 * Opens a userfaultfd inside QEMU. Until features are chosen for it, it does nothing, whoever is killed here.
 */
async function openRemote(pid: number): Promise<RemoteDescriptor> {
  const opened = await callInQemu(pid, { number: SYS_USERFAULTFD, args: [USERFAULTFD_FLAGS] });
  if (opened < 0) throw unavailable(`QEMU may not open a userfaultfd (${errnoName(-opened)})`);
  const remote = describe(pid, opened);
  if (remote === undefined) throw unavailable(`descriptor ${opened} of QEMU is not what was opened`);
  return remote;
}

function chooseFeatures(userfaultfd: number): void {
  const errno = enableWriteTracking(userfaultfd);
  if (errno !== '') throw unavailable(`asynchronous write-protection is refused (${errno})`);
}

/** Closes the tracker's descriptor inside QEMU. */
async function closeRemote(pid: number, { descriptor, inode }: RemoteDescriptor): Promise<void> {
  await callInQemu(pid, { number: SYS_CLOSE, args: [descriptor], descriptor: { number: descriptor, inode } });
}

/**
 * Closes the descriptors of `unused` that are still unused. They harm nobody, so what cannot be closed is
 * left to the next attempt.
 */
async function closeUnused(pid: number, unused: readonly RemoteDescriptor[]): Promise<void> {
  if (unused.length === 0) return;
  await sleep(UNUSED_MS);
  const still = new Set(unusedDescriptors(pid).map(({ inode }) => inode));
  for (const remote of unused) {
    if (still.has(remote.inode)) await closeRemote(pid, remote).catch(() => undefined);
  }
}

/** When its descriptor is closed, the marks are of another one, or none. @throws TRACKER_OFF, VM_GONE */
function checkStillOurs(pid: number, { descriptor, inode }: RemoteDescriptor, address: number): void {
  if (inodeOf(pid, descriptor) === inode) return;
  // A process that has ended has no descriptors; asking for its memory says so.
  readMemory(pid, address, new Uint8Array(1));
  throw new CheckpointError('TRACKER_OFF', 'the guest memory is not tracked for this Cairn any more', {
    hint: 'another Cairn, with another runtime folder, took over; the next checkpoint arms the tracker again',
    retryable: true,
  });
}

/** A duplicate of a descriptor of another process; the caller closes it. */
function duplicate(pid: number, { descriptor }: Pick<RemoteDescriptor, 'descriptor'>): number {
  const found = duplicateOf(pid, descriptor);
  if (found.descriptor !== undefined) return found.descriptor;
  if (found.error === 'ESRCH') throw new CheckpointError('VM_GONE', `process ${pid} has ended`);
  throw unavailable(
    `descriptor ${descriptor} of QEMU cannot be shared (${found.error})`,
    'run as root or with CAP_SYS_PTRACE; in a container, a seccomp profile that allows pidfd_getfd',
  );
}

function unavailable(why: string, hint?: string): CheckpointError {
  return new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `tracker ${PAGEMAP_SCAN_KIND}: ${why}`,
    hint === undefined ? {} : { hint },
  );
}
