import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary } from './support/cairn-cli.js';
import { PauseHold, checkpointAgainstTruth, differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

/** From 2 GiB on further threads walk the page tables (`span-finder.ts`). */
const MEMORY_MIB = 2304;
const INCREMENTS = 2;

describe('every checkpoint of a guest whose page tables are walked by several threads', () => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'oracle-large', memoryMib: MEMORY_MIB, devices: ['disk'] });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest('lab fill 600', 300_000);
    await machine.guest('lab memory 64');
    await machine.guest('lab disk');
  }, 400_000);
  afterAll(() => machine.destroy());

  it('holds exactly the memory it had, in a watcher and in processes of their own', async () => {
    const hold = new PauseHold(machine.dir);
    const watch = new CairnProcess(
      [
        ...['watch', machine.address, '--repo', options.repo],
        ...['--every', '0.3', '--count', `${INCREMENTS + 1}`, '--hook', hold.command],
      ],
      options,
    );
    const wrong: string[] = [];
    let truth: Map<string, Buffer> | undefined;
    for (let i = 0; i <= INCREMENTS; i++) {
      await hold.reached(watch);
      truth = await processTruth(machine, truth);
      hold.release();
      const summary = await watch.message(isSummary, i);
      expect(summary).toMatchObject({ tracker: 'pagemap-scan', compare_reason: '' });
      const differing = await differingFromStored(truth, options.repo, String(summary.checkpoint_id));
      wrong.push(...differing.map((page) => `checkpoint ${i}: ${page}`));
    }
    expect(wrong).toEqual([]);
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    for (let i = 0; i < 2; i++) {
      const { summary, differing } = await checkpointAgainstTruth(machine, [], options, processTruth);
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ kind: 'incremental', compare_reason: '' });
    }
    await machine.waitForProgress();
  }, 600_000);
});
