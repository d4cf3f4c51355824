/** The figures of an analysis, on epochs made by hand whose answers are known. */

import { describe, expect, it } from '@jest/globals';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { adviceFor } from '../../src/study/advice.js';
import { analyze } from '../../src/study/analysis.js';
import { CacheSimulation } from '../../src/study/cache-simulation.js';
import { DoublingHistogram } from '../../src/study/histogram.js';
import { openLiveSubject } from '../../src/study/live-subject.js';
import { PageStudy } from '../../src/study/page-statistics.js';
import { reportOf } from '../../src/study/report.js';
import { openRepositorySubject } from '../../src/study/repository-subject.js';
import type { ObservedEpoch, Subject } from '../../src/study/subject.js';
import { intervalFigures } from '../../src/study/windows.js';
import { openSession } from '../../src/checkpoint/open-session.js';
import { PageCodec } from '../../src/kernels/page-codec.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor, FakeVm } from '../support/fake-vm.js';

const PAGE = 4096;

/** Pages with the byte ranges [from, length] that change in each; nothing else does. */
function epoch(
  changes: Readonly<Record<number, readonly (readonly [number, number])[]>>,
  runMs = 100,
): ObservedEpoch {
  const pages = Uint32Array.from(
    Object.keys(changes)
      .map(Number)
      .sort((a, b) => a - b),
  );
  const before = new Uint8Array(pages.length * PAGE).fill(7);
  const after = before.slice();
  pages.forEach((page, i) => {
    for (const [from, length] of changes[page]!) after.fill(9, i * PAGE + from, i * PAGE + from + length);
  });
  return { runMs, pages, contentPages: pages, before, after };
}

function subjectOf(epochs: readonly ObservedEpoch[]): Subject {
  return {
    kind: 'trace',
    name: '<made by hand> & more',
    memoryBytes: 64 << 20,
    epochMs: 100,
    pauseMs: undefined,
    // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous
    async *epochs() {
      yield* epochs;
    },
  };
}

describe('a histogram of doubling bins', () => {
  it('puts each value into the one bin that holds it', () => {
    const histogram = new DoublingHistogram();
    for (const value of [0, 0, 1, 2, 3, 4, 7, 8, 4096]) histogram.add(value);
    const bins = histogram.bins();
    expect(bins.slice(0, 5)).toEqual([
      { from: 0, to: 0, count: 2 },
      { from: 1, to: 1, count: 1 },
      { from: 2, to: 3, count: 2 },
      { from: 4, to: 7, count: 2 },
      { from: 8, to: 15, count: 1 },
    ]);
    expect(bins.at(-1)).toEqual({ from: 4096, to: 4096, count: 1 });
    expect(bins.reduce((sum, { count }) => sum + count, 0)).toBe(9);
  });
});

describe('the study of dirty pages', () => {
  const study = new PageStudy();
  study.add(epoch({ 1: [[0, 4]], 2: [[64, 128]], 3: [], 10: [[4000, 96]] }));
  study.add(
    epoch(
      {
        2: [
          [0, 1],
          [2, 1],
        ],
      },
      50,
    ),
  );
  study.add(epoch({ 1: [[0, 4096]], 10: [[1, 1]] }));
  const result = study.result();

  it('counts pages, changed pages and changed bytes of each epoch, over the time that the guest ran', () => {
    expect(result.epochs).toEqual([
      { endMs: 100, dirtyPages: 4, contentPages: 4, changedPages: 3, changedBytes: 4 + 128 + 96 },
      { endMs: 150, dirtyPages: 1, contentPages: 1, changedPages: 1, changedBytes: 2 },
      { endMs: 250, dirtyPages: 2, contentPages: 2, changedPages: 2, changedBytes: 4097 },
    ]);
    expect(result.distinctPages).toBe(4);
    expect(result.meanChangedBytes).toBeCloseTo((4 + 128 + 96 + 2 + 4097) / 7);
  });

  it('tells where in the page it changes', () => {
    // Seven pages with contents: the first 64 bytes change in three of the seven, and in one all the rest.
    expect(result.positions[0]).toBeCloseTo(4 / 7);
    expect(result.positions[1]).toBeCloseTo(2 / 7);
    expect(result.positions[2]).toBeCloseTo(2 / 7);
    expect(result.positions[3]).toBeCloseTo(1 / 7);
    expect(result.positions[63]).toBeCloseTo(2 / 7);
  });

  it('measures stretches of changed bytes and of neighbouring pages', () => {
    const count = (bins: readonly { from: number; count: number }[], from: number): number =>
      bins.find((bin) => bin.from === from)?.count ?? 0;
    expect(count(result.changeRunBytes, 1)).toBe(3);
    expect(count(result.changeRunBytes, 4)).toBe(1);
    expect(count(result.changeRunBytes, 64)).toBe(1);
    expect(count(result.changeRunBytes, 128)).toBe(1);
    expect(count(result.changeRunBytes, 4096)).toBe(1);
    expect(count(result.pageRuns, 1)).toBe(4);
    expect(count(result.pageRuns, 2)).toBe(1);
  });

  it('measures after how many epochs a page is dirty again', () => {
    expect(result.reDirtyEpochs).toEqual([
      { from: 0, to: 0, count: 0 },
      { from: 1, to: 1, count: 1 },
      { from: 2, to: 2, count: 2 },
    ]);
    expect(result.firstTimePages).toBe(4);
  });
});

describe('the simulated cache', () => {
  it('keeps what was used last, at every size', () => {
    const cache = new CacheSimulation([2 * PAGE, 3 * PAGE]);
    cache.add(Uint32Array.of(1, 2, 3));
    cache.add(Uint32Array.of(1, 3));
    // Two pages: 1 is gone by the second epoch, 3 is there. Three pages: both are.
    expect(cache.result()).toEqual([
      { budgetBytes: 2 * PAGE, hitShare: 0.5 },
      { budgetBytes: 3 * PAGE, hitShare: 1 },
    ]);
  });
});

describe('longer intervals', () => {
  it('count a page once and store its change from the first to the last epoch', () => {
    const once = epoch({ 5: [[0, 100]] });
    // The second epoch takes back what the first did.
    const back = { ...once, before: once.after, after: once.before };
    const figures = intervalFigures([once, back, once, back], 0, new PageCodec(), 1000);
    const [single, double] = figures;
    expect(single).toMatchObject({ intervalMs: 100, dirtyPages: 1, extrapolated: false });
    expect(double).toMatchObject({ intervalMs: 200, dirtyPages: 1, extrapolated: false });
    expect(single!.storedBytes).toBeGreaterThan(100);
    expect(double!.storedBytes).toBeLessThan(20);
  });

  it('are never extrapolated beyond all of memory', () => {
    const epochs = Array.from({ length: 8 }, (_, i) => epoch({ [i * 2]: [[0, 8]], [i * 2 + 1]: [[0, 8]] }));
    const figures = intervalFigures(epochs, 0, new PageCodec(), 40);
    const far = figures.filter(({ extrapolated }) => extrapolated);
    expect(far.map(({ intervalMs }) => intervalMs)).toContain(3_600_000);
    for (const { dirtyPages } of far) expect(dirtyPages).toBeLessThanOrEqual(40);
  });
});

describe('advice', () => {
  const interval = { dirtyPages: 100, storedBytes: 10_000, extrapolated: false };
  const facts = {
    pauseMs: 5,
    mostBytesPerDay: undefined,
    intervals: [
      { ...interval, intervalMs: 100 },
      { ...interval, intervalMs: 1000 },
      { ...interval, intervalMs: 60_000 },
    ],
    budgets: [
      { budgetBytes: 1 << 20, hitShare: 0.5 },
      { budgetBytes: 16 << 20, hitShare: 0.995 },
      { budgetBytes: 64 << 20, hitShare: 1 },
    ],
    codecs: [
      { name: 'whole pages', level: undefined, storedBytes: 1000, rawBytes: 1000, ms: 1 },
      { name: 'deltas', level: 0, storedBytes: 500, rawBytes: 1000, ms: 1 },
      { name: 'deltas, zstd 1', level: 1, storedBytes: 300, rawBytes: 1000, ms: 1 },
      { name: 'deltas, zstd 3', level: 3, storedBytes: 298, rawBytes: 1000, ms: 1 },
    ],
  };

  it('takes the shortest interval that the guest hardly feels, a budget and a level that are enough', () => {
    const advice = adviceFor(facts);
    expect(advice.interval?.intervalMs).toBe(1000);
    expect(advice.budgetBytes).toBe(16 << 20);
    expect(advice.level).toBe(1);
  });

  it('minds what a day may store, and says when nothing fits', () => {
    expect(adviceFor({ ...facts, mostBytesPerDay: 100e6 }).interval?.intervalMs).toBe(60_000);
    expect(adviceFor({ ...facts, mostBytesPerDay: 1 }).interval).toBeUndefined();
  });
});

describe('a report', () => {
  it('is one file that refers to nothing outside, whatever the subject is called', async () => {
    const html = reportOf(
      await analyze(subjectOf([epoch({ 1: [[0, 4]] }), epoch({ 1: [[8, 4]], 2: [[0, 4096]] })])),
    );
    expect(html.match(/<svg /g)).toHaveLength(9);
    expect(html).toContain('&lt;made by hand&gt; &amp; more');
    expect(html).not.toContain('<made by hand>');
    expect(html).not.toMatch(/<script|<link|<img|@import|url\(/);
    expect(
      html.match(/https?:\/\/[^"]*/g)?.filter((url) => !url.startsWith('http://www.w3.org/')) ?? [],
    ).toEqual([]);
  });

  it('can be made of a VM that wrote nothing', async () => {
    const analysis = await analyze(subjectOf([epoch({}), epoch({})]));
    expect(analysis.statistics).toMatchObject({ distinctPages: 0, meanChangedBytes: 0 });
    expect(reportOf(analysis)).toContain('</html>');
  });
});

describe('subjects', () => {
  it('are the increments of a chain, page by page as they were recorded', async () => {
    const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-analyze-'));
    const guest = new FakeGuest();
    const repository = await Repository.init(new MemoryBackend());
    const session = await openSession(
      new HypervisorRegistry([new FakeHypervisor([guest])]),
      `fake:${guest.identity.name}`,
      {
        repository,
        runtimeDir,
        workers: 1,
      },
    );
    guest.write(3, Uint8Array.of(1));
    await session.checkpoint();
    guest.write(3, Uint8Array.of(2, 2), 10);
    guest.write(8, Uint8Array.of(5), 0);
    await session.checkpoint();
    await session.close();
    const { statistics } = await analyze(
      await openRepositorySubject(repository, undefined, { epochs: 10, maxContentPages: 100 }),
    );
    expect(statistics.epochs).toEqual([
      expect.objectContaining({ dirtyPages: 2, contentPages: 2, changedPages: 2, changedBytes: 3 }),
    ]);
    await expect(
      openRepositorySubject(repository, 'nothing', { epochs: 10, maxContentPages: 100 }),
    ).rejects.toMatchObject({ code: 'USAGE' });
    guest.dispose();
    rmSync(runtimeDir, { recursive: true });
  });

  it('are running VMs, which nobody else takes checkpoints of meanwhile and which run afterwards', async () => {
    const guest = new FakeGuest();
    const vm = new FakeVm(guest);
    const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-analyze-'));
    const options = { epochMs: 1, epochs: 2, maxContentPages: 100, tracker: 'auto', runtimeDir };
    const subject = await openLiveSubject(vm, options);
    await expect(openLiveSubject(new FakeVm(guest), options)).rejects.toMatchObject({ code: 'VM_LOCKED' });
    const { statistics } = await analyze(subject);
    expect(statistics.epochs).toHaveLength(2);
    await subject.close();
    expect(guest.state).toBe('running');
    // The record was harvested here: whoever comes next must find another one.
    expect(guest.token).toBeUndefined();
    guest.dispose();
    rmSync(runtimeDir, { recursive: true });
  });
});
