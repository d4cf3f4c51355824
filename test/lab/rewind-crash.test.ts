import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { REWIND_FAULT_POINTS, type RewindFaultPoint } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from './machine.js';
import { gentleLoad } from './support/guest-loads.js';
import { cairn, runCairn } from './support/cairn-cli.js';
import { checkpointAgainstTruth } from './support/oracle.js';
import {
  checkpoint,
  differing,
  goOn,
  optionsOf,
  refusal,
  rewindArgs,
  rewound,
  statusLater,
  type RewindOptions,
} from './support/rewinding.js';
import { StoppedCairn } from './support/stopped-cairn.js';

/**
 * Where the rewind of a QEMU 10.0 dies as well. What Cairn does at the other points does not depend on QEMU, and takes
 * minutes: CAIRN_REWIND=full tries all on both.
 */
const ON_BOTH: readonly RewindFaultPoint[] = [
  'rewindPaused',
  'rewindHalfWritten',
  'rewindLoaded',
  'rewindResumed',
];

function pointsOn<Point extends RewindFaultPoint>(qemu: string, points: readonly Point[]): readonly Point[] {
  const isWhole = qemu === '7.2' || process.env.CAIRN_REWIND === 'full';
  return points.filter((point) => isWhole || ON_BOTH.includes(point));
}

describe.each(['7.2', '10.0'] as const)('a rewind of QEMU %s that is cut off', (qemu) => {
  let machine: LabMachine;
  let options: RewindOptions;
  const ids: string[] = [];
  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'rewind-crash',
      memoryMib: 104,
      qemu,
      devices: ['disk', 'balloon'],
    });
    options = optionsOf(machine);
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(`lab fill 4; ${gentleLoad(6)}`);
    for (let i = 0; i < 2; i++) {
      ids.push(String((await checkpoint(machine)).checkpoint_id));
      await machine.waitForProgress();
    }
  });
  afterAll(() => machine.destroy());

  const killedAt = async (point: RewindFaultPoint): Promise<void> => {
    const env = { CAIRN_FAULT_POINT: `${REWIND_FAULT_POINTS[point]}` };
    const crashed = await runCairn(rewindArgs(machine, ids[0]), { ...options, env });
    expect(crashed.signal).toBe('SIGKILL');
  };

  it.each(pointsOn(qemu, ['rewindPrepared', 'rewindPaused']))(
    'at %s, before anything was written, leaves the guest running as it was',
    async (point) => {
      await checkpoint(machine);
      const tick = machine.lastTick();
      await killedAt(point);
      expect(await statusLater(machine)).toBe('running');
      await machine.waitForTick(tick + 2);
      const { differing: wrong } = await checkpointAgainstTruth(machine, [], options);
      expect(wrong).toEqual([]);
    },
  );

  it.each(
    pointsOn(qemu, [
      'rewindNoted',
      'rewindHalfWritten',
      'rewindWritten',
      'rewindCleared',
      'rewindLoaded',
      'rewindLookedAgain',
      'rewindWhole',
    ]),
  )('at %s leaves the guest paused until the next one has finished it', async (point) => {
    await checkpoint(machine);
    await killedAt(point);
    expect(await statusLater(machine)).toBe('paused');
    const refused = await runCairn(['checkpoint', machine.address, '--repo', options.repo], options);
    expect(refused).toMatchObject({ exitCode: 22 });
    expect(refused.messages.at(-1)).toMatchObject({
      code: 'REWIND_UNFINISHED',
      detail: { targetId: ids[0] },
    });
    expect((await cairn(['doctor', machine.address], options)).hazards).toContainEqual(
      expect.objectContaining({ code: 'REWIND_UNFINISHED' }),
    );
    expect(await machine.qmp.status()).toBe('paused');
    // To another one as well as to the same.
    const target = point === 'rewindCleared' || point === 'rewindHalfWritten' ? ids[1] : ids[0];
    expect(await rewound(machine, target, '--paused')).toMatchObject({ took_up: true });
    expect(await differing(machine, target)).toEqual([]);
    await goOn(machine);
    const { summary, differing: wrong } = await checkpointAgainstTruth(machine, [], options);
    expect(wrong).toEqual([]);
    expect(summary).toMatchObject({ kind: 'incremental', compare_reason: '' });
  });

  it.each([
    ['rewindResumed', false],
    ['rewindLedgerWritten', true],
  ] as const)(
    'at %s is through: the guest runs, and the next checkpoint is exact',
    async (point, isKnown) => {
      await killedAt(point);
      expect(await machine.qmp.status()).toBe('running');
      await goOn(machine);
      const { summary, differing: wrong } = await checkpointAgainstTruth(machine, [], options);
      expect(wrong).toEqual([]);
      expect(summary.compare_reason === '').toBe(isKnown);
    },
  );

  it('together with its guard, is finished by the next, which makes the guest run', async () => {
    const stopped = await StoppedCairn.at('rewindWritten', rewindArgs(machine, ids[0]), options);
    expect(await stopped.killWithGuards()).toBeGreaterThan(0);
    expect(await statusLater(machine)).toBe('paused');
    expect(await rewound(machine, ids[0])).toMatchObject({ took_up: true, running: true });
    await goOn(machine);
  });

  it('is finished also when the record of what was written has been lost: every page is written', async () => {
    await checkpoint(machine);
    await killedAt('rewindCleared');
    await cairn(['release', machine.address], options);
    const result = await rewound(machine, ids[0], '--paused');
    expect(result).toMatchObject({ took_up: true });
    expect(await differing(machine, ids[0])).toEqual([]);
    await goOn(machine);
    const { summary, differing: wrong } = await checkpointAgainstTruth(machine, [], options);
    expect(wrong).toEqual([]);
    expect(summary).toMatchObject({ compare_reason: '' });
  });

  it('by a load that QEMU refuses stays paused, is refused while the reason lasts, and is finished after that', async () => {
    const ignoreShared = (state: boolean) =>
      machine.qmp.command('migrate-set-capabilities', {
        capabilities: [{ capability: 'x-ignore-shared', state }],
      });
    const stopped = await StoppedCairn.at('rewindNoted', rewindArgs(machine, ids[0]), options);
    await ignoreShared(true);
    const { exitCode, messages } = await stopped.goOn();
    expect(messages.at(-1)).toMatchObject({ code: 'REWIND_FAILED', detail: { checkpointId: ids[0] } });
    expect(exitCode).toBe(20);
    expect(await statusLater(machine)).toBe('paused');
    expect(await refusal(machine, ids[0])).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'MIGRATION_CAPABILITY' },
    });
    expect(await machine.qmp.status()).toBe('paused');
    await ignoreShared(false);
    expect(await rewound(machine, ids[0], '--paused')).toMatchObject({ took_up: true });
    expect(await differing(machine, ids[0])).toEqual([]);
    await goOn(machine);
  });

  it('by SIGTERM once it has begun to write goes through all the same', async () => {
    await checkpoint(machine);
    const stopped = await StoppedCairn.at(
      'rewindHalfWritten',
      rewindArgs(machine, ids[1], ['--paused']),
      options,
    );
    await stopped.goOn('SIGTERM');
    expect(await machine.qmp.status()).toBe('paused');
    expect(await differing(machine, ids[1])).toEqual([]);
    await goOn(machine);
    await checkpoint(machine);
  });
});
