/**
 * Dirty tracking by the kernel's soft-dirty bits, for kernels without PAGEMAP_SCAN: 4 written to
 * /proc/PID/clear_refs clears the bit of every page of the process and write-protects it; the first write
 * sets it again; /proc/PID/pagemap shows it (Documentation/admin-guide/mm/soft-dirty.rst). KVM follows, since
 * clearing invalidates its own page tables.
 *
 * Reading and clearing are two steps, and a write between them is lost. No order of reads and clears mends
 * that: after a clear nothing tells a page that was written just before it from one that was not. Hence the
 * one rule: bits are cleared only while the VM is quiet (see `quiet-vm.ts`). The exception is another
 * monitor's command that resets or changes the VM within the milliseconds of one `collect`.
 *
 * At any other time `collect` reads and does not clear. It then reports everything since the last clearing,
 * so nothing is lost. Proof, for a write W and the clearing C that follows it:
 *
 *     no C after W      the bit stays, every later collect reports W
 *     C in a collect    C is within a quiet stretch and W before it, so the read of the same collect saw it
 *     C in a pause      that somebody else has ended meanwhile: once that is known, the next collect reports
 *                       all pages
 *     C by others       the canary is not intact: the next collect reports all pages
 *
 * And for a write W after a clearing: the page was write-protected by it, so W sets the bit, with two
 * exceptions of the kernel, both of which make `collect` report all pages. A page that is being migrated
 * while the bits are cleared comes back writable and without the bit (the counters of migrations have moved
 * since). KSM puts another page in its place and drops the bit (the process has merged pages).
 *
 * Costs: reading takes 8 bytes a page in the pause; clearing walks the page tables, and the guest faults once
 * for each page that it touches afterwards. Each live round stops the VM for one clearing.
 */

import { closeSync, openSync, writeSync } from 'node:fs';

import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import {
  TRACKS_WRITES,
  type DirtyTracker,
  type Harvest,
  type TrackerTraits,
} from '../../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import { checkStillMapped } from '../../memory/mapped-blocks.js';
import type { QemuProcess } from '../../../qemu/peer-process.js';
import type { QuietVm } from '../quiet-vm.js';
import type { RamBlock } from '../../memory/ram-blocks.js';
import {
  armingPath,
  leaveState,
  newArming,
  readArming,
  removeArming,
  takeState,
  writeArming,
  type ArmedRange,
  type Arming,
} from './arming.js';
import { Canary, findCanaryPage } from './canary.js';
import { visitFindings } from './entries.js';
import { hasMergedPages, migrationCount } from './kernel-moves.js';
import { SOFT_DIRTY_KIND, softDirtyReport } from './support.js';

/** "4": clear the soft-dirty bits (Documentation/filesystems/proc.rst). */
const CLEAR_SOFT_DIRTY = '4';
/** Fewer written pages than this are reported once more next time, which costs less than a clearing. */
const WORTH_CLEARING_PAGES = 64;

export interface SoftDirtyOptions {
  readonly process: QemuProcess;
  readonly layout: MemoryLayout;
  /** A block for each region of the layout, in its order. */
  readonly blocks: readonly RamBlock[];
  readonly runtimeDir: string;
  readonly quiet: QuietVm;
}

interface Armed {
  readonly pagemap: number;
  readonly memory: number;
  readonly clearRefs: number;
  readonly canary: Canary;
  readonly arming: Arming;
}

export class SoftDirtyTracker implements DirtyTracker {
  readonly kind = SOFT_DIRTY_KIND;
  readonly traits: TrackerTraits = {
    ...TRACKS_WRITES,
    clearsOnlyAtRest: true,
    settle: () => this.#options.quiet.whileQuiet(() => this.collect()),
  };
  readonly #options: SoftDirtyOptions;
  readonly #path: string;
  readonly #owed: DirtyBitmap;
  /** What the last collect reported as absent. */
  #absent: DirtyBitmap;
  /**
   * The kernel's count of migrated pages before the last clearing; empty when nothing was cleared since
   * `start` of a new record.
   */
  #migrations = '';
  #disturbances = 0;
  #armed: Armed | undefined;

  constructor(options: SoftDirtyOptions) {
    this.#options = options;
    this.#path = armingPath(options.runtimeDir, options.process);
    this.#owed = new DirtyBitmap(options.layout.pageSpan);
    this.#absent = new DirtyBitmap(options.layout.pageSpan);
  }

  get token(): string {
    return this.#on().arming.token;
  }

  async start(): Promise<void> {
    if (this.#armed !== undefined) return;
    const { process, layout, blocks } = this.#options;
    const report = softDirtyReport(process.pid, blocks);
    if (!report.usable) {
      throw new CheckpointError('TRACKER_UNAVAILABLE', `tracker ${this.kind}: ${report.reason}`, {
        ...(report.remedy === undefined ? {} : { hint: report.remedy }),
      });
    }
    const opened: number[] = [];
    const open = (name: string, flags: string): number => {
      const descriptor = openFile(`/proc/${process.pid}/${name}`, flags);
      opened.push(descriptor);
      return descriptor;
    };
    try {
      const pagemap = open('pagemap', 'r');
      const memory = open('mem', 'r+');
      const clearRefs = open('clear_refs', 'w');
      const canaryFor = ({ canaryAddress, mark }: Arming): Canary =>
        new Canary(memory, pagemap, canaryAddress, Buffer.from(mark, 'hex'));
      const known = await readArming(this.#path, this.#ranges());
      const left = known === undefined ? undefined : takeState(this.#path, known.token, layout.pageSpan);
      if (known !== undefined && left !== undefined && canaryFor(known).isIntact()) {
        this.#absent = left.absent;
        this.#migrations = left.migrations;
        this.#armed = { pagemap, memory, clearRefs, canary: canaryFor(known), arming: known };
        return;
      }
      removeArming(this.#path);
      const arming = newArming(process, await findCanaryPage(process, memory), this.#ranges());
      await writeArming(this.#path, arming);
      this.#armed = { pagemap, memory, clearRefs, canary: canaryFor(arming), arming };
    } catch (error) {
      opened.forEach((descriptor) => closeSync(descriptor));
      throw error;
    }
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  collect(): Harvest {
    const armed = this.#on();
    const { process, layout, blocks, quiet } = this.#options;
    // The map of memory that was unplugged shows nothing but absent pages.
    checkStillMapped(process.pid, undefined, blocks);
    const written = new DirtyBitmap(layout.pageSpan);
    const absent = new DirtyBitmap(layout.pageSpan);
    layout.regions.forEach((region, i) => {
      const { host } = blocks[i]!;
      visitFindings(armed.pagemap, host, host + region.sizeBytes, (finding, start, end) => {
        const bitmap = finding === 'written' ? written : absent;
        bitmap.setRange(region.firstPage + (start - host) / PAGE_SIZE_BYTES, (end - start) / PAGE_SIZE_BYTES);
      });
    });
    const isWorthClearing = written.count() >= WORTH_CLEARING_PAGES;
    // All asked after the read: what they tell of may have come in between its parts.
    const migrations = migrationCount();
    const disturbances = quiet.disturbances();
    const isWhole =
      armed.canary.isIntact() &&
      migrations === this.#migrations &&
      !hasMergedPages(process.pid) &&
      disturbances === this.#disturbances;
    if (!isWhole) {
      for (const { firstPage, pageCount } of layout.regions) written.setRange(firstPage, pageCount);
    }
    // What was absent then and is now still reads as zero.
    const goneAbsent = absent.clone();
    goneAbsent.andNot(this.#absent);
    written.or(goneAbsent);
    if ((isWorthClearing || !isWhole) && quiet.isQuiet()) {
      try {
        clear(armed.clearRefs);
        armed.canary.set();
        this.#migrations = migrations;
        this.#disturbances = disturbances;
      } catch (error) {
        // What was cleared is nowhere else.
        this.#owed.or(written);
        throw error;
      }
    }
    this.#absent = absent;
    written.or(this.#owed);
    this.#owed.clear();
    return { dirty: written, absent: absent.clone() };
  }

  putBack(dirty: DirtyBitmap): void {
    this.#owed.or(dirty);
  }

  /** Bits cannot be turned off; the record is only forgotten. */
  stop(): Promise<void> {
    this.#release();
    removeArming(this.#path);
    return Promise.resolve();
  }

  close(): void {
    const armed = this.#armed;
    if (armed !== undefined) leaveState(this.#path, armed.arming.token, this.#absent, this.#migrations);
    this.#release();
  }

  #release(): void {
    const armed = this.#armed;
    this.#armed = undefined;
    if (armed === undefined) return;
    closeSync(armed.pagemap);
    closeSync(armed.memory);
    closeSync(armed.clearRefs);
  }

  #on(): Armed {
    if (this.#armed === undefined)
      throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
    return this.#armed;
  }

  #ranges(): readonly ArmedRange[] {
    const { layout, blocks } = this.#options;
    return layout.regions.map(({ id, sizeBytes }, i) => ({ id, start: blocks[i]!.host, sizeBytes }));
  }
}

function clear(clearRefs: number): void {
  try {
    writeSync(clearRefs, CLEAR_SOFT_DIRTY);
  } catch (cause) {
    if (systemErrorCode(cause) === 'ESRCH')
      throw new CheckpointError('VM_GONE', 'the VM has ended while its dirty marks were cleared', { cause });
    throw new CheckpointError('TRACKER_FAILED', `clearing the dirty marks of QEMU: ${describeError(cause)}`, {
      cause,
    });
  }
}

function openFile(path: string, flags: string): number {
  try {
    return openSync(path, flags);
  } catch (cause) {
    const code = systemErrorCode(cause);
    if (code === 'ENOENT' || code === 'ESRCH')
      throw new CheckpointError('VM_GONE', `the process of ${path} has ended`, { cause });
    throw new CheckpointError('VM_PERMISSION', `cannot open ${path}: ${describeError(cause)}`, {
      cause,
      hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE',
    });
  }
}
