/**
 * A real QEMU whose Cairn is killed in the pause together with its guards, as a machine that is out of memory may do: nobody is left who
 * would have the guest go on. The next command that attaches puts everything right.
 */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import type { FaultPoint } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from './machine.js';
import { gentleLoad } from './support/guest-loads.js';
import { cairn, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import type { QemuVersion } from './support/lab-files.js';
import { checkpointAgainstTruth } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';
import { StoppedCairn } from './support/stopped-cairn.js';

interface Case {
  readonly point: FaultPoint;
  readonly tracker: 'pagemap-scan' | 'qmp-stream';
  /** The command that comes next. */
  readonly next: 'checkpoint' | 'doctor';
}

/** Another one in the pause, with --freeze, is in freeze.test.ts. */
const IN_PAUSE: readonly FaultPoint[] = ['afterPause', 'duringCopy', 'beforeResume'];
const TRACKERS = ['pagemap-scan', 'qmp-stream'] as const;
const NEXT = ['checkpoint', 'doctor'] as const;
/** QEMU 7.2 gets each point with each tracker, 10.0 each point once: there the VM runs while its memory is streamed. */
const CASES: Readonly<Record<QemuVersion, readonly Case[]>> = {
  '7.2': IN_PAUSE.flatMap((point, i) =>
    TRACKERS.map((tracker, j) => ({ point, tracker, next: NEXT[(i + j) % 2]! })),
  ),
  '10.0': IN_PAUSE.map((point, i) => ({ point, tracker: TRACKERS[(i + 1) % 2]!, next: NEXT[i % 2]! })),
};
/** A guard that lives needs less. */
const MOMENT_MS = 500;
/** What a stream changes for its time, with the operator's own choice of it. */
const OPERATOR_PARAMETERS = { 'max-bandwidth': 123_456_789, 'downtime-limit': 77 };

describe.each<QemuVersion>(['7.2', '10.0'])('a guest of QEMU %s that is left paused', (qemu) => {
  let machine: LabMachine;
  let options: CliOptions & { readonly repo: string };
  let settings: unknown;
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'kill-both', memoryMib: 96, qemu });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(16));
    await machine.qmp.command('migrate-set-parameters', OPERATOR_PARAMETERS);
    settings = await migrationSettings();
    await take();
  });
  afterAll(() => machine.destroy());

  const take = (): Promise<CliMessage> =>
    cairn(['checkpoint', machine.address, '--repo', options.repo], options);

  async function migrationSettings(): Promise<unknown> {
    return [
      await machine.qmp.command('query-migrate-capabilities'),
      await machine.qmp.command('query-migrate-parameters'),
    ];
  }

  function markers(): readonly string[] {
    return readdirSync(join(options.dir, 'runtime')).filter((name) => /^(paused|frozen|stream)-/.test(name));
  }

  async function expectAllRight(): Promise<void> {
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForProgress();
    expect(await migrationSettings()).toEqual(settings);
    expect(markers()).toEqual([]);
  }

  it.each(CASES[qemu])(
    'by a kill at $point with $tracker goes on with the next cairn $next, and the next checkpoint is exact',
    async ({ point, tracker, next }) => {
      const args = ['checkpoint', machine.address, '--repo', options.repo, '--tracker', tracker];
      const doomed = await StoppedCairn.at(point, args, options);
      expect(await doomed.killWithGuards()).toBeGreaterThan(0);
      await sleep(MOMENT_MS);
      expect(await machine.qmp.status()).not.toBe('running');
      expect(markers()).not.toEqual([]);

      if (next === 'doctor') {
        const { recovered } = await cairn(['doctor', machine.address], options);
        expect(recovered).not.toEqual([]);
        await expectAllRight();
      }
      const { differing } = await checkpointAgainstTruth(
        machine,
        ['--tracker', tracker],
        options,
        processTruth,
      );
      expect(differing).toEqual([]);
      await expectAllRight();
    },
  );

  it('has a whole repository after all of them', async () => {
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });
});
