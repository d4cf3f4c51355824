import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import { chooseTracker } from '../../src/checkpoint/trust/tracker-choice.js';
import { regionOfPage } from '../../src/hypervisor/memory-layout.js';
import { recordEpochs } from '../../src/study/trace/recorder.js';
import { LabMachine } from './machine.js';
import { gentleLoad } from './support/guest-loads.js';
import { groundTruth } from './support/ground-truth.js';

const PAGE = 4096;

describe('recording a trace of a running guest', () => {
  let machine: LabMachine;
  let runtimeDir: string;
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'trace', memoryMib: 128 });
    await machine.guest(gentleLoad(16));
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-trace-'));
  });
  afterAll(async () => {
    await machine.destroy();
    rmSync(runtimeDir, { recursive: true, force: true });
  });

  it('gives the contents that the guest has, and leaves it running', async () => {
    const vm = await attachKvm(machine.address, { runtimeDir });
    try {
      const layout = await vm.memory.layout();
      const { tracker } = await chooseTracker(vm, 'auto');
      const before = await groundTruth(machine);
      await machine.qmp.command('cont');
      const latest = new Map<number, Buffer>();
      let seen = 0;
      const options = { epochMs: 200, epochs: 3, maxContentPages: 1 << 20 };
      for await (const epoch of recordEpochs(vm, layout, tracker, options)) {
        expect(await machine.qmp.status()).toBe('paused');
        epoch.pages.forEach((page, i) => {
          const old = Buffer.from(epoch.before.subarray(i * PAGE, (i + 1) * PAGE));
          expect(latest.get(page)?.equals(old) ?? true).toBe(true);
          latest.set(page, Buffer.from(epoch.after.subarray(i * PAGE, (i + 1) * PAGE)));
        });
        seen++;
        if (seen < options.epochs) continue;
        const truth = await groundTruth(machine);
        let changed = 0;
        for (const [page, contents] of latest) {
          const region = regionOfPage(layout, page)!;
          const at = (page - region.firstPage) * PAGE;
          expect(
            truth
              .get(region.id)!
              .subarray(at, at + PAGE)
              .equals(contents),
          ).toBe(true);
          if (
            !before
              .get(region.id)!
              .subarray(at, at + PAGE)
              .equals(contents)
          )
            changed++;
        }
        expect(changed).toBeGreaterThan(100);
      }
      await tracker.stop();
    } finally {
      await vm.close();
    }
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForProgress();
  });
});
