/**
 * A real QEMU whose Cairn hangs in the pause: the guest goes on while Cairn still hangs, what Cairn has when it wakes is no checkpoint,
 * and the next one holds exactly the memory of its pause.
 */

import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, type CliOptions } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import type { QemuVersion } from './support/lab-files.js';
import { checkpointAgainstTruth } from './support/oracle.js';
import { IN_PAUSE, StoppedCairn, pauseMarkers, storedObjects } from './support/stopped-cairn.js';

const TRACKERS = ['pagemap-scan', 'qmp-stream', 'compare'] as const;
/** Each case waits for the limit. QEMU 7.2 gets all of them, 10.0 each point and each tracker once. */
const CASES = {
  '7.2': IN_PAUSE.flatMap((point) => TRACKERS.map((tracker) => ({ point, tracker }))),
  '10.0': IN_PAUSE.map((point, i) => ({ point, tracker: TRACKERS[i]! })),
};
/** Long enough to come to the point on a busy host. */
const LIMIT = ['--pause-limit', '5s'];

describe.each<QemuVersion>(['7.2', '10.0'])('a pause of QEMU %s that goes on', (qemu) => {
  let machine: LabMachine;
  let options: CliOptions & { readonly repo: string };
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'pause-limit', memoryMib: 96, qemu });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(16));
    await cairn(take(), options);
  });
  afterAll(() => machine.destroy());

  const take = (...more: string[]): string[] => [
    ...['checkpoint', machine.address, '--repo', options.repo],
    ...more,
  ];

  it.each(CASES[qemu])(
    'is taken away from a Cairn that hangs at $point, with $tracker',
    async ({ point, tracker }) => {
      const before = storedObjects(options.repo);
      const hung = await StoppedCairn.at(point, take(...LIMIT, '--tracker', tracker), options);
      expect(await machine.qmp.status()).not.toBe('running');
      await machine.waitForProgress();
      expect(hung.isStopped()).toBe(true);
      const { exitCode, messages } = await hung.goOn();
      expect({ exitCode, error: messages.at(-1) }).toMatchObject({
        exitCode: 27,
        error: { code: 'PAUSE_LIMIT' },
      });
      expect(storedObjects(options.repo)).toEqual(before);
      expect(pauseMarkers(options.dir)).toEqual([]);
      expect(await machine.qmp.status()).toBe('running');
      expect((await checkpointAgainstTruth(machine, [], options)).differing).toEqual([]);
    },
  );

  it('leaves a whole repository', async () => {
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });
});
