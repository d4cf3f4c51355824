import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary } from './support/cairn-cli.js';
import { groundTruth } from './support/ground-truth.js';
import { PauseHold, checkpointAgainstTruth, differingFromStored } from './support/oracle.js';

const INCREMENTS = 20;

describe('every checkpoint of a working guest holds exactly the memory it had', () => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'oracle', smp: 2, devices: ['disk', 'net', 'balloon', 'vga'] });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest('lab memory 24');
    await machine.guest('lab disk');
  });
  afterAll(() => machine.destroy());

  it(`in a base and ${INCREMENTS} increments under memory, disk and balloon load`, async () => {
    const hold = new PauseHold(machine.dir);
    const watch = new CairnProcess(
      [
        'watch',
        machine.address,
        '--repo',
        options.repo,
        '--every',
        '0.3',
        '--count',
        `${INCREMENTS + 1}`,
        '--hook',
        hold.command,
      ],
      options,
    );
    const wrong: string[] = [];
    for (let i = 0; i <= INCREMENTS; i++) {
      await hold.reached(watch);
      const truth = await groundTruth(machine);
      hold.release();
      // The balloon takes pages away and gives them back, within one increment and across several.
      await machine.qmp.command('balloon', { value: (i % 3 === 0 ? 256 : i % 3 === 1 ? 160 : 200) << 20 });
      const summary = await watch.message(isSummary, i);
      expect(summary).toMatchObject({
        kind: i === 0 ? 'base' : 'incremental',
        tracker: 'pagemap-scan',
        compare_reason: '',
      });
      const differing = await differingFromStored(truth, options.repo, String(summary.checkpoint_id));
      wrong.push(...differing.map((page) => `checkpoint ${i}: ${page}`));
    }
    expect(wrong).toEqual([]);
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    await machine.waitForProgress();
  });

  it('in increments taken by separate processes, which trust the record of the one before', async () => {
    await machine.qmp.command('balloon', { value: 256 << 20 });
    for (let i = 0; i < 4; i++) {
      const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ kind: 'incremental', compare_reason: '' });
    }
  });

  it('after the guest was rebooted', async () => {
    const bytes = machine.diary().length;
    await machine.guest('reboot -f &');
    await machine.waitForBoot(bytes);
    const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
    expect(differing).toEqual([]);
    expect(summary).toMatchObject({ kind: 'incremental', compare_reason: '' });
  });

  it('of a VM that was found paused, which stays paused', async () => {
    await machine.qmp.command('stop');
    const summary = await cairn(
      ['checkpoint', machine.address, '--repo', options.repo, '--memory-only'],
      options,
    );
    expect(summary).toMatchObject({ pause_ms: 0 });
    expect(await machine.qmp.status()).toBe('paused');
    const truth = await groundTruth(machine);
    expect(await differingFromStored(truth, options.repo, String(summary.checkpoint_id))).toEqual([]);
    await machine.qmp.command('cont');
    await machine.waitForProgress();
  });

  it('and the repository verifies', async () => {
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });
});

describe('memory plugged into a VM in the pause of a checkpoint', () => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'hotplug',
      memoryMib: 160,
      devices: [],
      extraArgs: ['-m', 'slots=2,maxmem=1G'],
    });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
  });
  afterAll(() => machine.destroy());

  it('fails that checkpoint, and the next one of the same session holds it', async () => {
    const hold = new PauseHold(machine.dir);
    const watch = new CairnProcess(
      [
        'watch',
        machine.address,
        '--repo',
        options.repo,
        '--allow-changed-machine',
        '--every',
        '0.3',
        '--count',
        '4',
        '--hook',
        hold.command,
      ],
      options,
    );
    const truths: Map<string, Buffer>[] = [];
    for (let i = 0; i < 4; i++) {
      await hold.reached(watch);
      if (i === 1) {
        await machine.qmp.command('object-add', {
          'qom-type': 'memory-backend-ram',
          id: 'plugged',
          size: 128 << 20,
        });
        await machine.qmp.command('device_add', { driver: 'pc-dimm', id: 'dimm', memdev: 'plugged' });
      } else truths.push(await groundTruth(machine));
      hold.release();
    }
    const { messages, exitCode } = await watch.ended;
    expect(exitCode).toBe(3);
    expect(messages.filter(({ message_type }) => message_type === 'error')).toMatchObject([
      { code: 'VM_STATE', retryable: true, message: expect.stringContaining('plugged') },
    ]);
    const summaries = messages.filter(isSummary);
    expect(summaries).toMatchObject([
      { kind: 'base' },
      { kind: 'incremental', compare_reason: expect.stringContaining('regions') },
      { kind: 'incremental', compare_reason: '' },
    ]);
    for (const [i, { checkpoint_id: id }] of summaries.entries())
      expect(await differingFromStored(truths[i]!, options.repo, String(id))).toEqual([]);
    expect(truths.map((truth) => truth.has('plugged'))).toEqual([false, true, true]);
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForProgress();
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });
});
