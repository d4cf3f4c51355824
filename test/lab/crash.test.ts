import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from './machine.js';
import { cairn, runCairn } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import { checkpointAgainstTruth } from './support/oracle.js';

/** Far above what the guard needs; a guest that is still paused by then has been forgotten. */
const RESUME_LIMIT_MS = 20_000;

describe('kill -9 of Cairn', () => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'crash', memoryMib: 104, devices: ['balloon'] });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(16));
    await cairn(['checkpoint', machine.address, '--repo', options.repo], options);
  });
  afterAll(() => machine.destroy());

  // With --freeze there is one more: freeze.test.ts.
  it.each(Object.entries(FAULT_POINTS).filter(([name]) => name !== 'afterFreeze'))(
    'at %s (point %i) leaves the guest running, the repository whole and the next checkpoint exact',
    async (name, point) => {
      // A tiny pause budget makes live rounds happen, so that their fault point is passed.
      const crashed = await runCairn(
        ['checkpoint', machine.address, '--repo', options.repo, '--max-pause', '0.1'],
        {
          ...options,
          env: { CAIRN_FAULT_POINT: `${point}` },
        },
      );
      expect(crashed.signal).toBe('SIGKILL');
      const until = Date.now() + RESUME_LIMIT_MS;
      while ((await machine.qmp.status()) !== 'running' && Date.now() < until) await sleep(20);
      expect(await machine.qmp.status()).toBe('running');
      await machine.waitForProgress();
      expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });

      const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
      expect(differing).toEqual([]);
      // Once a harvest may have been lost, the tracker is not trusted until a checkpoint has gone through.
      const isOwed = point >= FAULT_POINTS.beforeHarvest && name !== 'ledgerWritten';
      expect(summary.compare_reason === '').toBe(!isOwed);
    },
  );
});
