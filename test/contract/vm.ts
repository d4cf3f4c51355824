/**
 * What every VM adapter keeps to, whatever hypervisor it is for. Run by jest in `vm.test.ts` and the lab's `*-contract.test.ts`, and by a runner
 * of its own in dom0 of the Xen lab, where there is no jest.
 */

import { expect } from 'expect';

import type { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderModule } from '../../src/hypervisor/guest-reader.js';
import { sameLayout } from '../../src/hypervisor/memory-layout.js';
import type { Vm } from '../../src/hypervisor/vm.js';
import { PAGE_SIZE_BYTES, countRunPages } from '../../src/types.js';
import type { SuiteRunner } from './suite-runner.js';

/** What an adapter can do with a VM, as far as adapters differ. What it cannot do it must refuse, and the suite tests the refusal instead. */
export interface VmAbilities {
  /** The kind of tracker whose record outlives a process; undefined where all pages are compared each time. */
  readonly trackerKind: string | undefined;
  /** Kinds of trackers that the adapter has and this VM cannot use. */
  readonly unusableTrackers: readonly string[];
  /** What becomes of a freeze: there is no such method, it works, or it is refused with this code. */
  readonly freeze: 'absent' | 'works' | 'VM_UNSUPPORTED' | 'GUEST_AGENT';
  /** A VM that somebody else has stopped is captured and left stopped, or its pause is refused. */
  readonly foreignPause: 'kept' | 'refused';
  /** The ways in which its writable disks can be snapshotted. */
  readonly snapshotModes: readonly string[];
  /** Pages that each collect reports, because others than the guest write to them unseen. */
  readonly alwaysDirtyPages: number;
  /** Pages inside of its regions that are the hypervisor's own, not the guest's memory: absent, whatever they read as. */
  readonly hypervisorPages: number;
  /** For how long a case may need its pause, where reading all memory in it takes longer than a checkpoint's pause may. */
  readonly pauseLimitMs?: number;
}

export interface VmUnderTest {
  /** Another Cairn process on the same VM. The one before is closed by then. */
  attach(): Promise<Vm>;
  /** Somebody who pauses and resumes the VM by other means than this adapter. */
  operator(): Promise<{ pause(): Promise<unknown>; resume(): Promise<unknown> }>;
  /** Has the running guest change memory, and returns when it has. */
  disturb(): Promise<void>;
  destroy(): Promise<void>;
}

const PAGES_PER_READ = 4096;
/** Nobody who answers takes that long; the test for a guest without an agent waits for it at most. */
const FREEZE_LIMIT_MS = 2000;

export function describeVm(
  runner: SuiteRunner,
  name: string,
  abilities: VmAbilities,
  open: () => Promise<VmUnderTest>,
): void {
  const { afterAll, afterEach, beforeAll, describe, it } = runner;
  const { trackerKind, unusableTrackers, foreignPause } = abilities;
  describe(`VM contract: ${name}`, () => {
    let subject: VmUnderTest;
    let vm: Vm;
    const trackers: DirtyTracker[] = [];

    beforeAll(async () => {
      subject = await open();
      vm = await subject.attach();
      await vm.memory.layout();
    });
    afterAll(async () => {
      await vm.close();
      await subject.destroy();
    });
    afterEach(async () => {
      for (const tracker of trackers.splice(0)) tracker.close();
      if ((await vm.runState.read()) === 'paused') await vm.runState.resume();
    });

    const pause = (): Promise<boolean> => vm.runState.pause({ limitMs: abilities.pauseLimitMs });

    async function started(kind: string): Promise<DirtyTracker> {
      const tracker = vm.memory.tracker(kind);
      await tracker.start();
      trackers.push(tracker);
      return tracker;
    }

    async function reattach(): Promise<void> {
      for (const tracker of trackers.splice(0)) tracker.close();
      await vm.close();
      vm = await subject.attach();
      await vm.memory.layout();
    }

    /** All pages that are not absent, page by page; what is absent counts as zero. */
    async function contents(absent: DirtyBitmap): Promise<readonly Buffer[]> {
      const layout = await vm.memory.layout();
      const { moduleUrl, options } = vm.memory.reader();
      const reader = ((await import(moduleUrl)) as GuestReaderModule).openGuestReader(options);
      try {
        const oddPages: number[] = [];
        const regions = layout.regions.map(({ firstPage, pageCount }) => {
          const region = Buffer.alloc(pageCount * PAGE_SIZE_BYTES);
          for (let at = 0; at < pageCount; at += PAGES_PER_READ) {
            const count = Math.min(PAGES_PER_READ, pageCount - at);
            const into = region.subarray(at * PAGE_SIZE_BYTES, (at + count) * PAGE_SIZE_BYTES);
            reader.readRuns(Uint32Array.of(firstPage + at, count), into);
          }
          const odd = pagesThat(region, (page) => absent.has(firstPage + page) && !isZero(region, page));
          oddPages.push(...odd);
          for (const page of odd) region.fill(0, page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES);
          return region;
        });
        expect(oddPages.length).toBeLessThanOrEqual(abilities.hypervisorPages);
        return regions;
      } finally {
        reader.close();
      }
    }

    async function changedPages(
      before: readonly Buffer[],
      after: readonly Buffer[],
    ): Promise<readonly number[]> {
      const { regions } = await vm.memory.layout();
      return regions.flatMap(({ firstPage }, i) =>
        pagesThat(before[i]!, (page) => !samePage(before[i]!, after[i]!, page)).map(
          (page) => firstPage + page,
        ),
      );
    }

    /**
     * The changed pages that were not reported. Where others write to the paused VM as well, a page that they wrote to between the
     * collect and the reading is reported by the next collect.
     */
    function missedPages(
      tracker: DirtyTracker,
      dirty: DirtyBitmap,
      changed: readonly number[],
    ): readonly number[] {
      const missed = changed.filter((page) => !dirty.has(page));
      if (abilities.alwaysDirtyPages === 0) return missed;
      const late = tracker.collect().dirty;
      return missed.filter((page) => !late.has(page));
    }

    it('says who the VM is, the same each time', async () => {
      const { identity, machine } = vm;
      expect(identity.machineType).not.toBe('');
      expect(identity.instance).not.toBe('');
      await reattach();
      expect(vm.identity).toEqual(identity);
      expect(vm.machine).toEqual(machine);
      expect(JSON.parse(JSON.stringify(machine))).toEqual(machine);
    });

    it('lays out its memory in regions that start at whole words of a bitmap, the same each time', async () => {
      const layout = await vm.memory.layout();
      expect(layout.regions.length).toBeGreaterThan(0);
      expect(new Set(layout.regions.map(({ id }) => id)).size).toBe(layout.regions.length);
      expect(layout.regions.filter(({ firstPage }) => firstPage % 64 !== 0)).toEqual([]);
      expect(sameLayout(layout, await vm.memory.layout())).toBe(true);
    });

    it('reports trackers, among them the one that is always right', async () => {
      const { trackers: reports } = await vm.inspect();
      expect(reports.find(({ kind }) => kind === 'compare')).toMatchObject({ usable: true });
      expect(reports.filter((report) => !report.usable && report.reason === '')).toEqual([]);
    });

    it('pauses and resumes, and pausing what is paused changes nothing', async () => {
      expect(await vm.runState.read()).toBe('running');
      expect(await pause()).toBe(true);
      expect(await vm.runState.read()).toBe('paused');
      expect(await pause()).toBe(false);
      expect(await vm.runState.read()).toBe('paused');
      await vm.runState.resume();
      expect(await vm.runState.read()).toBe('running');
    });

    it('does not resume what it did not pause', async () => {
      const other = await subject.operator();
      await other.pause();
      if (foreignPause === 'kept') expect(await pause()).toBe(false);
      else await expect(pause()).rejects.toMatchObject({ code: 'VM_STATE' });
      await vm.runState.resume();
      expect(await vm.runState.read()).toBe('paused');
      await other.resume();
      expect(await vm.runState.read()).toBe('running');
    });

    it('says so when somebody else resumed the VM in its pause', async () => {
      await pause();
      await (await subject.operator()).resume();
      await expect(vm.runState.resume()).rejects.toMatchObject({ code: 'VM_STATE' });
      expect(await vm.runState.read()).toBe('running');
    });

    it('is left in the run state it has by close', async () => {
      await reattach();
      expect(await vm.runState.read()).toBe('running');
    });

    it('hands out its device state once for each time it is saved', async () => {
      await expect(vm.deviceState.take()).rejects.toMatchObject({ code: 'VM_STATE' });
      await pause();
      await vm.deviceState.save();
      await vm.runState.resume();
      const first = await vm.deviceState.take();
      expect(first.length).toBeGreaterThan(0);
      await expect(vm.deviceState.take()).rejects.toMatchObject({ code: 'VM_STATE' });
      await pause();
      await vm.deviceState.save();
      await vm.deviceState.save();
      expect((await vm.deviceState.take()).length).toBeGreaterThan(0);
    });

    it('gives its memory to a reader that is loaded by address, into plain and WebAssembly memory alike', async () => {
      const layout = await vm.memory.layout();
      await pause();
      const description = vm.memory.reader();
      const module = (await import(description.moduleUrl)) as GuestReaderModule;
      const reader = module.openGuestReader(
        JSON.parse(JSON.stringify(description.options)) as typeof description.options,
      );
      // The last pages of one region and the first of the next, as the scan of a bitmap would merge them, and a page apart.
      const runs = layout.regions.flatMap(({ firstPage, pageCount }) =>
        pageCount > 2 ? [firstPage, 1, firstPage + 2, 1] : [firstPage, pageCount],
      );
      const wanted = Uint32Array.from(runs);
      const plain = new Uint8Array(countRunPages(wanted) * PAGE_SIZE_BYTES);
      reader.readRuns(wanted, plain);
      for (const memory of [wasmMemory(false), wasmMemory(true)]) {
        memory.grow(64);
        const view = new Uint8Array(memory.buffer, 8 * PAGE_SIZE_BYTES, plain.length);
        reader.readRuns(wanted, view);
        expect(Buffer.compare(Buffer.from(view), plain)).toBe(0);
      }
      reader.close();
    });

    it('refuses to read pages of no region, or more than there is room for', async () => {
      const { pageSpan } = await vm.memory.layout();
      const { moduleUrl, options } = vm.memory.reader();
      const reader = ((await import(moduleUrl)) as GuestReaderModule).openGuestReader(options);
      const page = new Uint8Array(PAGE_SIZE_BYTES);
      expect(() => reader.readRuns(Uint32Array.of(pageSpan + 64, 1), page)).toThrow();
      expect(() => reader.readRuns(Uint32Array.of(0, 2), page)).toThrow();
      reader.close();
    });

    it('refuses a tracker of a kind it does not have', () => {
      expect(codeOf(() => vm.memory.tracker('no-such-thing'))).toBe('TRACKER_UNAVAILABLE');
    });

    for (const kind of unusableTrackers)
      it(`says why it cannot use the tracker ${kind}, and does not start it`, async () => {
        const { trackers: reports } = await vm.inspect();
        const report = reports.find((one) => one.kind === kind);
        expect(report).toMatchObject({ usable: false });
        expect(report!.reason).not.toBe('');
        const tracker = vm.memory.tracker(kind);
        await expect(tracker.start()).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
        tracker.close();
      });

    for (const kind of trackerKind === undefined ? ['compare'] : [trackerKind, 'compare'])
      describe(`its tracker ${kind}`, () => describeTracker(kind));
    if (trackerKind !== undefined) describePersistentTracker(trackerKind);

    function describeTracker(kind: string): void {
      it('collects nothing before it is started or after it is closed', async () => {
        const tracker = vm.memory.tracker(kind);
        expect(codeOf(() => tracker.collect())).toBe('TRACKER_OFF');
        expect(codeOf(() => tracker.token)).toBe('TRACKER_OFF');
        await tracker.start();
        tracker.close();
        expect(codeOf(() => tracker.collect())).toBe('TRACKER_OFF');
      });

      it('reports every page that changes between two pauses, and absent pages that are zero', async () => {
        const tracker = await started(kind);
        await pause();
        const before = await contents(tracker.collect().absent);
        await vm.runState.resume();
        await subject.disturb();
        await pause();
        const { dirty, absent } = tracker.collect();
        const changed = await changedPages(before, await contents(absent));
        expect(changed.length).toBeGreaterThan(0);
        expect(missedPages(tracker, dirty, changed)).toEqual([]);
      });

      it('reports pages of the regions only', async () => {
        const layout = await vm.memory.layout();
        const { dirty, absent } = (await started(kind)).collect();
        for (const { firstPage, pageCount } of layout.regions) {
          for (
            let page = firstPage + pageCount;
            page < Math.ceil((firstPage + pageCount) / 64) * 64;
            page++
          ) {
            expect(dirty.has(page) || absent.has(page)).toBe(false);
          }
        }
      });

      it('reports again what it is given back', async () => {
        const tracker = await started(kind);
        await pause();
        const { dirty } = tracker.collect();
        tracker.putBack(dirty);
        const again = tracker.collect().dirty;
        dirty.andNot(again);
        expect(dirty.count()).toBe(0);
      });
    }

    it('has a compare tracker that reports all pages, each start on its own account', async () => {
      const { regions } = await vm.memory.layout();
      const first = await started('compare');
      expect(first.collect().dirty.count()).toBe(regions.reduce((sum, { pageCount }) => sum + pageCount, 0));
      expect((await started('compare')).token).not.toBe(first.token);
    });

    function describePersistentTracker(trackerKind: string): void {
      it('has a tracker that clears what it reports', async () => {
        const tracker = await started(trackerKind);
        await pause();
        tracker.collect();
        expect(tracker.collect().dirty.count()).toBeLessThanOrEqual(abilities.alwaysDirtyPages);
      });

      it('has a tracker whose record goes on under the same token when its process ends', async () => {
        const first = await started(trackerKind);
        const { token } = first;
        await pause();
        const before = await contents(first.collect().absent);
        await vm.runState.resume();
        await reattach();
        await subject.disturb();
        const second = await started(trackerKind);
        expect(second.token).toBe(token);
        await pause();
        const { dirty, absent } = second.collect();
        const changed = await changedPages(before, await contents(absent));
        expect(changed.length).toBeGreaterThan(0);
        expect(missedPages(second, dirty, changed)).toEqual([]);
        // Not all of memory: then the record would be worth nothing.
        expect(dirty.count()).toBeLessThan((await vm.memory.layout()).sizeBytes / PAGE_SIZE_BYTES / 2);
      });

      it('has a tracker that is another one after it was stopped', async () => {
        const first = await started(trackerKind);
        const { token } = first;
        await first.stop();
        const second = await started(trackerKind);
        expect(second.token).not.toBe(token);
        const { sizeBytes } = await vm.memory.layout();
        expect(second.collect().dirty.count()).toBeGreaterThan(sizeBytes / PAGE_SIZE_BYTES / 4);
      });
    }

    it('lists its disks, and those of them that it can snapshot', async () => {
      const disks = await vm.disks.list();
      for (const disk of disks) {
        expect(disk.id).not.toBe('');
        if (!disk.writable) expect(disk.snapshotModes).toEqual([]);
      }
      const modes = disks.flatMap(({ snapshotModes }) => snapshotModes);
      expect([...new Set(modes)].sort()).toEqual([...abilities.snapshotModes].sort());
    });

    it('freezes the file systems of its guest and thaws them, or says that it cannot', async () => {
      if (abilities.freeze === 'absent') {
        expect(vm.freezer).toBeUndefined();
      } else if (abilities.freeze === 'works') {
        expect(await vm.freezer!.freeze(FREEZE_LIMIT_MS, FREEZE_LIMIT_MS)).toBeGreaterThan(0);
        await vm.freezer!.thaw();
      } else {
        await expect(vm.freezer!.freeze(FREEZE_LIMIT_MS, FREEZE_LIMIT_MS)).rejects.toMatchObject({
          code: abilities.freeze,
        });
      }
      expect(await vm.runState.read()).toBe('running');
    });

    it('refuses everything once it is closed', async () => {
      await vm.close();
      await expect(vm.memory.layout()).rejects.toMatchObject({ code: 'VM_GONE' });
      await expect(vm.runState.read()).rejects.toMatchObject({ code: 'VM_GONE' });
      await expect(pause()).rejects.toMatchObject({ code: 'VM_GONE' });
      vm = await subject.attach();
      await vm.memory.layout();
    });
  });
}

/** The type declarations at hand know no `shared`. */
function wasmMemory(shared: boolean): WebAssembly.Memory {
  const descriptor = { initial: 64, maximum: 1024, shared };
  return new WebAssembly.Memory(descriptor);
}

function codeOf(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return (error as { code?: unknown }).code;
  }
  return undefined;
}

function pagesThat(region: Buffer, wanted: (page: number) => boolean): number[] {
  const pages: number[] = [];
  for (let page = 0; page < region.length / PAGE_SIZE_BYTES; page++) if (wanted(page)) pages.push(page);
  return pages;
}

const ZERO_PAGE = Buffer.alloc(PAGE_SIZE_BYTES);

function isZero(region: Buffer, page: number): boolean {
  return (
    region.compare(ZERO_PAGE, 0, PAGE_SIZE_BYTES, page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES) === 0
  );
}

function samePage(a: Buffer, b: Buffer, page: number): boolean {
  const from = page * PAGE_SIZE_BYTES;
  return a.compare(b, from, from + PAGE_SIZE_BYTES, from, from + PAGE_SIZE_BYTES) === 0;
}
