import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { LOGDIRTY_FINAL } from '../../adapters/xen/ffi/library.js';
import { LogDirtyTracker } from '../../adapters/xen/trackers/log-dirty-tracker.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { TypeScan } from '../../adapters/xen/memory/presence.js';
import type { Harvest } from '../../src/hypervisor/dirty-tracker.js';
import { expandRuns } from '../../src/types.js';
import { FakeXen } from '../support/fake-xen.js';

const ENOMEM = 12;
/** HVM_PARAM_STORE_PFN and HVM_PARAM_CONSOLE_PFN. */
const STORE_RING = 1;
const CONSOLE_RING = 17;
const EOPNOTSUPP = 95;

describe('the log-dirty tracker of Xen', () => {
  let dir: string;
  let xen: FakeXen;
  let saver: string;

  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-xen-tracker-'));
    xen = new FakeXen(600);
    saver = '';
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const layout = layoutOf([
    { firstFrame: 0, frameCount: 1024 },
    { firstFrame: 0xe00, frameCount: 512 },
  ]);

  function makeTracker(): LogDirtyTracker {
    const domain = new XenDomain(xen, xen.domid);
    return new LogDirtyTracker({
      domain,
      layout,
      recordPath: join(dir, 'record.json'),
      presence: new TypeScan(domain, layout, () => 0),
      isStopped: () => xen.isSuspended,
      foreignSave: () => saver,
    });
  }

  async function started(): Promise<LogDirtyTracker> {
    const tracker = makeTracker();
    await tracker.start();
    tracker.collect();
    return tracker;
  }

  const pagesOf = ({ dirty }: Harvest): readonly number[] => [...expandRuns(dirty.toRuns())];

  it('reports all pages first, then what was written since, once', async () => {
    const tracker = makeTracker();
    await tracker.start();
    expect(pagesOf(tracker.collect())).toHaveLength(600);
    expect(pagesOf(tracker.collect())).toEqual([]);
    xen.write(5, 1);
    xen.write(599, 1);
    expect(pagesOf(tracker.collect())).toEqual([5, 599]);
    expect(pagesOf(tracker.collect())).toEqual([]);
  });

  it('maps frames of a second region to its page indexes', async () => {
    xen.pages.set(0xe03, new Uint8Array(4096));
    const tracker = await started();
    xen.write(0xe03, 1);
    expect(pagesOf(tracker.collect())).toEqual([1024 + 3]);
  });

  it('reports pages that come back from the balloon although no bit is set for them', async () => {
    const tracker = await started();
    xen.balloonOut(10);
    const out = tracker.collect();
    expect(pagesOf(out)).toEqual([10]);
    expect(out.absent.has(10)).toBe(true);
    expect(out.absent.has(11)).toBe(false);
    xen.balloonIn(10, 7);
    const back = tracker.collect();
    expect(pagesOf(back)).toEqual([10]);
    expect(back.absent.has(10)).toBe(false);
  });

  it('reports a page that went and came back within one epoch', async () => {
    const tracker = await started();
    xen.balloonOut(10);
    xen.balloonIn(10, 7);
    expect(pagesOf(tracker.collect())).toContain(10);
  });

  it('knows across processes which pages were there', async () => {
    const first = await started();
    const { token } = first;
    first.close();
    xen.balloonIn(700, 7);
    const second = makeTracker();
    await second.start();
    expect(second.token).toBe(token);
    expect(pagesOf(second.collect())).toEqual([700]);
  });

  it('gives back what was put back', async () => {
    const tracker = await started();
    xen.write(5, 1);
    const { dirty } = tracker.collect();
    tracker.putBack(dirty);
    xen.write(6, 1);
    expect(pagesOf(tracker.collect())).toEqual([5, 6]);
    expect(pagesOf(tracker.collect())).toEqual([]);
  });

  it('takes another token when somebody switched tracking off in between', async () => {
    const tracker = await started();
    const { token } = tracker;
    xen.switchOff();
    xen.write(5, 1);
    expect(await tracker.beginCheckpoint()).not.toBe(token);
    expect(xen.isLogDirty).toBe(true);
    // Under the new token nothing of the time before is claimed to be unchanged.
    expect(pagesOf(tracker.collect())).toHaveLength(600);
  });

  it('is not misled by the count that a save by somebody else leaves behind', async () => {
    const first = await started();
    xen.write(5, 1);
    xen.switchOff();
    first.close();
    const second = makeTracker();
    await second.start();
    expect(pagesOf(second.collect())).toHaveLength(600);
    xen.write(6, 1);
    expect(pagesOf(second.collect())).toEqual([6]);
  });

  it('fails the checkpoint when tracking was switched off in the middle of it', async () => {
    const tracker = await started();
    const { token } = tracker;
    xen.switchOff();
    expect(() => tracker.collect()).toThrow(
      expect.objectContaining({ code: 'TRACKER_FAILED', retryable: true }),
    );
    expect(tracker.token).not.toBe(token);
  });

  it('never trusts a record that was made under an arming which is gone', async () => {
    const first = await started();
    const { token } = first;
    first.close();
    xen.switchOff();
    const second = makeTracker();
    await second.start();
    expect(second.token).not.toBe(token);
  });

  it('does not touch the bitmap while somebody else saves the domain', async () => {
    const tracker = await started();
    saver = 'libxl-save-helper (process 1)';
    await expect(tracker.beginCheckpoint()).rejects.toMatchObject({ code: 'VM_STATE', retryable: true });
  });

  it('refuses to take over tracking that somebody else may be using', async () => {
    xen.isLogDirty = true;
    saver = 'libxl-save-helper (process 1)';
    await expect(async () => makeTracker().start()).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
    expect(xen.isLogDirty).toBe(true);
  });

  it('arms anew what was left on by somebody who is gone', async () => {
    xen.isLogDirty = true;
    const tracker = makeTracker();
    await tracker.start();
    expect(pagesOf(tracker.collect())).toHaveLength(600);
  });

  it.each([
    ['the hypervisor cannot track this guest', EOPNOTSUPP],
    ['the hypervisor has no memory for it', ENOMEM],
  ])('is unavailable when %s', async (_, errno) => {
    xen.fault = { call: 'shadowControl', errno };
    await expect(async () => makeTracker().start()).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
  });

  it('trusts nothing any more when the bitmap and the count of the hypervisor disagree', async () => {
    const tracker = await started();
    const { token } = tracker;
    xen.write(5, 1);
    xen.countError = 1;
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_FAILED' }));
    xen.countError = 0;
    expect(tracker.token).not.toBe(token);
  });

  it('trusts nothing any more when reading the bitmap failed', async () => {
    const tracker = await started();
    const { token } = tracker;
    xen.fault = { call: 'logDirty', errno: ENOMEM };
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_FAILED' }));
    xen.fault = undefined;
    expect(tracker.token).not.toBe(token);
  });

  it('notices memory that appears outside of every region', async () => {
    const tracker = await started();
    xen.balloonIn(0x900);
    xen.write(0x900, 1);
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_FAILED' }));
  });

  describe('of frames that backends write to', () => {
    it('reports in each stop what is mapped for writing, flagged or not', async () => {
      const tracker = await started();
      xen.mapGrant(3, 40);
      xen.mapGrant(4, 41, false);
      xen.isSuspended = true;
      xen.writeFromOutside(40, 1);
      expect(pagesOf(tracker.collect())).toEqual([40]);
      xen.writeFromOutside(40, 2);
      expect(pagesOf(tracker.collect())).toEqual([40]);
    });

    it('reports what was written before a mapping ended, once', async () => {
      const tracker = await started();
      xen.mapGrant(3, 40);
      xen.writeFromOutside(40, 1);
      expect(pagesOf(tracker.collect())).toEqual([]);
      xen.unmapGrant(3);
      xen.isSuspended = true;
      expect(pagesOf(tracker.collect())).toEqual([40]);
      expect(pagesOf(tracker.collect())).toEqual([]);
    });

    it('reports the rings of console and xenstore in each stop', async () => {
      xen.params.set(STORE_RING, 50n).set(CONSOLE_RING, 51n);
      const tracker = await started();
      xen.isSuspended = true;
      expect(pagesOf(tracker.collect())).toEqual([50, 51]);
    });

    it('leaves out frames without memory behind them and frames of no region', async () => {
      const tracker = await started();
      xen.mapGrant(3, 700);
      xen.mapGrant(4, 0xc00);
      xen.isSuspended = true;
      expect(pagesOf(tracker.collect())).toEqual([]);
    });

    it.each(['grantVersion', 'grantFrames', 'readGrants', 'hvmParam'] as const)(
      'has taken nothing from the bitmap when %s fails',
      async (call) => {
        const tracker = await started();
        const { token } = tracker;
        xen.write(5, 1);
        xen.isSuspended = true;
        xen.fault = { call, errno: ENOMEM };
        expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'FFI_FAILED' }));
        xen.fault = undefined;
        expect(tracker.token).toBe(token);
        expect(pagesOf(tracker.collect())).toEqual([5]);
      },
    );

    it('fails for a grant table of a version that is not known', async () => {
      const tracker = await started();
      xen.grantTableVersion = 3;
      xen.isSuspended = true;
      expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'FFI_FAILED' }));
    });
  });

  it('says "final" for a guest that stands still', async () => {
    const tracker = await started();
    xen.isSuspended = true;
    tracker.collect();
    expect(xen.modes.slice(-2)).toEqual([0, LOGDIRTY_FINAL]);
  });

  it('reports a domain that has ended', async () => {
    const tracker = await started();
    xen.isGone = true;
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'VM_GONE' }));
  });

  it('switches tracking off for good when stopped', async () => {
    const tracker = await started();
    await tracker.stop();
    expect(xen.isLogDirty).toBe(false);
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_OFF' }));
  });
});
