import { afterEach, describe, expect, it } from '@jest/globals';

import { KvmDevice } from '../../adapters/kvm/trackers/dirty-log/device.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { runExample } from '../../examples/dirty-log-vmm/example.js';
import { guestPagesOf, logModes, whyNoKvmLog, type LogMode } from '../../examples/dirty-log-vmm/vmm.js';
import { logFaults, LogLab, SMALL_RING_BYTES } from '../truth/kvm-log.js';

const whyNot = whyNoKvmLog();
const modes: readonly LogMode[] = whyNot === '' ? logModes() : ['bitmap', 'manual-protect'];
if (whyNot !== '') process.stderr.write(`KVM's dirty log is not tested on this host: ${whyNot}\n`);

const labs: LogLab[] = [];
afterEach(() => labs.splice(0).forEach((lab) => lab.close()));

async function started(mode: LogMode, ringBytes?: number): Promise<LogLab> {
  const lab = new LogLab(mode, ringBytes);
  labs.push(lab);
  await lab.tracker.start();
  return lab;
}

describe('/dev/kvm', () => {
  it('is named when it is not there', () => {
    expect(() => KvmDevice.open('/dev/no-kvm')).toThrow(
      expect.objectContaining({ code: 'KVM_UNAVAILABLE', message: expect.stringContaining('/dev/no-kvm') }),
    );
  });
});

(whyNot === '' ? describe : describe.skip)('the example of a VMM', () => {
  it('finds exactly the pages that its guest wrote, in every way that this kernel has', async () => {
    const lines: string[] = [];
    expect(await runExample((line) => lines.push(line))).toBe(true);
    expect(lines).toEqual(modes.map((mode) => expect.stringContaining(`${mode}: `)));
  });
});

(whyNot === '' ? describe : describe.skip).each(modes)("KVM's dirty log, %s", (mode) => {
  it('names exactly the pages that the guest wrote, and that changed in memory', () => {
    expect(logFaults(mode)).toEqual([]);
  });

  it('is empty after it was collected, and names a page again that is written again', async () => {
    const lab = await started(mode);
    lab.write([20, 21]);
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([20, 21]);
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([]);
    lab.write([21]);
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([21]);
  });

  it('does not hold what the VMM writes, which has to tell the tracker', async () => {
    const lab = await started(mode);
    lab.low.bytes[30 * 4096] = 1;
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([]);
    lab.tracker.noteWritten(30, 2);
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([30, 31]);
  });

  it('names what was put back once more', async () => {
    const lab = await started(mode);
    lab.write([40]);
    const { dirty } = lab.tracker.collect();
    lab.tracker.putBack(dirty);
    lab.write([41]);
    expect(guestPagesOf(lab.tracker.collect().dirty)).toEqual([40, 41]);
  });

  it('counts from a new token after a stop', async () => {
    const lab = await started(mode);
    const { token } = lab.tracker;
    await lab.tracker.stop();
    expect(() => lab.tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_OFF' }));
    await lab.tracker.start();
    expect(lab.tracker.token).not.toBe(token);
  });
});

(whyNot === '' ? describe : describe.skip)('manual protection', () => {
  it('leaves the log as it is until just the given pages are cleared', async () => {
    const lab = await started('manual-protect');
    const { slot } = lab.low.slot;
    lab.write([64, 65, 130]);
    const first = lab.machine.getDirtyLog(slot, 1000);
    expect(guestPagesOf(DirtyBitmap.fromWords(1000, first))).toEqual([64, 65, 130]);
    expect(lab.machine.getDirtyLog(slot, 1000)).toEqual(first);
    lab.machine.clearDirtyLog(slot, 64, 64, BigUint64Array.of(1n));
    expect(guestPagesOf(DirtyBitmap.fromWords(1000, lab.machine.getDirtyLog(slot, 1000)))).toEqual([65, 130]);
  });
});

(modes.includes('ring') ? describe : describe.skip)('dirty rings', () => {
  it('stop a guest that fills them, and miss nothing: an overrun counts as everything written', async () => {
    const lab = await started('ring', SMALL_RING_BYTES);
    for (let round = 0; round < 5; round++) {
      const pages = lab.somePages(round, 900);
      const found = lab.write(pages);
      expect(found.count()).toBeGreaterThan(0);
      found.or(lab.tracker.collect().dirty);
      expect(pages.filter((page) => !found.has(page))).toEqual([]);
      // Of this host's kernel, not of ours: the guest cannot go on.
      if (lab.guest.vcpu.ring!.isOverrun) return;
    }
  });

  it('are refused beyond what the kernel allows', () => {
    const device = KvmDevice.open();
    const machine = device.createVm();
    device.close();
    expect(() => machine.useDirtyRings(2 ** 30)).toThrow(
      expect.objectContaining({ code: 'KVM_UNAVAILABLE' }),
    );
    machine.close();
  });
});
