import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { CompareTracker } from '../../adapters/kvm/trackers/compare-tracker.js';
import { writeTrackingDescriptors } from '../../adapters/kvm/trackers/pagemap-scan/arming.js';
import { pagemapScanReport } from '../../adapters/kvm/trackers/pagemap-scan/support.js';
import { PagemapScanTracker } from '../../adapters/kvm/trackers/pagemap-scan/tracker.js';
import { softDirtyReport } from '../../adapters/kvm/trackers/soft-dirty/support.js';
import { SoftDirtyTracker } from '../../adapters/kvm/trackers/soft-dirty/tracker.js';
import type { RamBlock } from '../../adapters/kvm/memory/ram-blocks.js';
import { processStartTime } from '../../src/host/process-identity.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';

const HOLDER = fileURLToPath(new URL('../support/mapped-memory.js', import.meta.url));
const SIZE_BYTES = 1 << 20;

interface Subject {
  readonly child: ChildProcess;
  readonly options: ConstructorParameters<typeof PagemapScanTracker>[0];
}

let runtimeDir: string;
let subject: Subject;
let isQuiet: boolean;
let disturbances: number;
beforeEach(async () => {
  isQuiet = false;
  disturbances = 0;
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-unplugged-'));
  const child = spawn(process.execPath, [HOLDER, String(SIZE_BYTES)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const host = Number(await answer(child));
  const block: RamBlock = {
    id: 'dimm0',
    sizeBytes: SIZE_BYTES,
    host,
    backing: 'anonymous',
    backingPageBytes: 4096,
    file: undefined,
  };
  const pid = child.pid!;
  subject = {
    child,
    options: {
      process: { pid, startTime: await processStartTime(pid), program: process.execPath },
      layout: layOut([block]),
      blocks: [block],
      runtimeDir,
      quiet: {
        isHeld: () => isQuiet,
        isQuiet: () => isQuiet,
        disturbances: () => disturbances,
        whileQuiet: (work) => Promise.resolve(work()),
      },
    },
  };
});
afterEach(() => {
  subject.child.kill('SIGKILL');
  rmSync(runtimeDir, { recursive: true });
});

function answer(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => child.stdout!.setEncoding('latin1').once('data', resolve));
}

async function unplug(): Promise<void> {
  subject.child.stdin!.write('\n');
  await answer(subject.child);
}

async function end(): Promise<void> {
  const exited = new Promise((resolve) => subject.child.once('exit', resolve));
  subject.child.kill('SIGKILL');
  await exited;
}

describe.each([
  ['compare', CompareTracker],
  ['pagemap-scan', PagemapScanTracker],
] as const)('the %s tracker', (kind, Tracker) => {
  async function started(): Promise<InstanceType<typeof Tracker> | undefined> {
    const report = pagemapScanReport(subject.options.process.pid);
    if (kind === 'pagemap-scan' && !report.usable) {
      console.warn(`skipped: ${report.reason}`);
      return undefined;
    }
    const tracker = new Tracker(subject.options);
    await tracker.start();
    expect(tracker.collect().dirty.count()).toBeGreaterThan(0);
    return tracker;
  }

  it('fails when a block is gone, instead of taking its pages for unchanged or empty', async () => {
    const tracker = await started();
    if (tracker === undefined) return;
    await unplug();
    expect(() => tracker.collect()).toThrow(
      expect.objectContaining({ code: 'TRACKER_OFF', retryable: true, detail: { region: 'dimm0' } }),
    );
    tracker.close();
  });

  it('says that the VM is gone when the process is', async () => {
    const tracker = await started();
    if (tracker === undefined) return;
    await end();
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'VM_GONE' }));
    tracker.close();
  });
});

describe('the pagemap-scan tracker, when its tracer is killed', () => {
  it('while tracking ends, is ended by the next one, whatever that finds', async () => {
    const { process: qemu } = subject.options;
    const report = pagemapScanReport(qemu.pid);
    if (!report.usable) {
      console.warn(`skipped: ${report.reason}`);
      return;
    }
    let kills = 0;
    for (let isOver = false; !isOver; kills++) {
      const tracker = new PagemapScanTracker(subject.options);
      await tracker.start();
      expect(writeTrackingDescriptors(qemu.pid)).toHaveLength(1);
      process.env.CAIRN_TRACER_FAULT_POINT = String(kills + 1);
      isOver = await tracker.stop().then(
        () => true,
        () => false,
      );
      delete process.env.CAIRN_TRACER_FAULT_POINT;
    }
    expect(kills).toBeGreaterThan(10);
    expect(writeTrackingDescriptors(qemu.pid)).toEqual([]);
  }, 120_000);
});

describe.each([
  ['pagemap-scan', PagemapScanTracker, pagemapScanReport],
  ['soft-dirty', SoftDirtyTracker, softDirtyReport],
] as const)('the %s tracker, when somebody else ended a pause', (_kind, Tracker, reportOf) => {
  it('reports all pages once, whatever it cleared in that pause', async () => {
    const { process, blocks } = subject.options;
    const report = reportOf(process.pid, blocks);
    if (!report.usable) {
      console.warn(`skipped: ${report.reason}`);
      return;
    }
    isQuiet = true;
    const tracker = new Tracker(subject.options);
    await tracker.start();
    tracker.collect();
    expect(tracker.collect().dirty.count()).toBe(0);
    disturbances++;
    expect(tracker.collect().dirty.count()).toBe(SIZE_BYTES / PAGE_SIZE_BYTES);
    expect(tracker.collect().dirty.count()).toBe(0);
    tracker.close();
  });
});

describe('the pagemap-scan tracker, when its state file cannot be written', () => {
  it('leaves no descriptor behind in the process, and says what could not be written', async () => {
    const { pid } = subject.options.process;
    const report = pagemapScanReport(pid);
    if (!report.usable) {
      console.warn(`skipped: ${report.reason}`);
      return;
    }
    const tracker = new PagemapScanTracker({ ...subject.options, runtimeDir: join(runtimeDir, 'none') });
    await expect(tracker.start()).rejects.toMatchObject({
      code: 'STORAGE_IO',
      message: expect.stringContaining(runtimeDir),
    });
    expect(writeTrackingDescriptors(pid)).toEqual([]);
  });
});
