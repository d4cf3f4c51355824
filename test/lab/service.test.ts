/**
 * `cairn run` with two real guests: it notices them, one goes away and comes back, it reads its file again, is killed and started again;
 * no chain gets a new base for any of it, and what it stores is what is in the stopped guests.
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine, type LabMachineOptions } from './machine.js';
import { CairnProcess, cairn, runCairn, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import { scratchDir } from './support/lab-files.js';
import { differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

const FIRST: LabMachineOptions = {
  name: 'first',
  memoryMib: 96,
  uuid: '6f1d1b6e-0000-4000-8000-000000000001',
};
const SECOND: LabMachineOptions = {
  name: 'second',
  memoryMib: 96,
  uuid: '6f1d1b6e-0000-4000-8000-000000000002',
};

describe('the service', () => {
  let dir: string;
  let repo: string;
  let config: string;
  let options: CliOptions;
  let first: LabMachine;
  let second: LabMachine;
  let service: CairnProcess;

  const policy = (name: string, guestDir: string, more: string): string =>
    `[[policy]]\nname = "${name}"\nvms = ["qmp:${guestDir}/qmp.sock"]\nrepository = "${repo}"\n${more}\n`;
  const writeConfig = (more: string): void =>
    writeFileSync(
      config,
      `[service]\nconcurrent = 1\nlook = 0.3\n${policy('one', join(dir, 'first'), more)}${policy('two', join(dir, 'second'), 'every = 1')}`,
    );
  const start = (): CairnProcess => new CairnProcess(['run', '--config', config], options);
  const of = (name: string) => (message: CliMessage) =>
    message.vm_name === name && 'checkpoint_id' in message;
  /** One that begins after now. */
  async function nextOf(name: string): Promise<CliMessage> {
    const taken = service.messages.filter(of(name)).length;
    // One may be done and not said yet, and another one under way.
    return service.message(of(name), taken + 2);
  }
  /** Stops the machine. @returns a checkpoint that began after that */
  async function stoppedCheckpoint(machine: LabMachine): Promise<string> {
    for (;;) {
      await machine.qmp.command('stop');
      // One that came in a pause of Cairn's ends with that pause; the guest says so several times a second.
      await sleep(500);
      const tick = machine.lastTick();
      const { checkpoint_id } = await nextOf(machine.name);
      if (machine.lastTick() === tick && (await machine.qmp.status()) === 'paused')
        return String(checkpoint_id);
    }
  }
  const status = async (): Promise<CliMessage> => (await runCairn(['status'], options)).messages[0]!;
  async function waitForStatus(
    fits: (vms: readonly CliMessage[]) => boolean,
  ): Promise<readonly CliMessage[]> {
    for (;;) {
      const vms = (await status()).vms as readonly CliMessage[];
      if (fits(vms)) return vms;
    }
  }
  /** In the same folder each time, so that it has the same address. */
  const newGuest = (guest: LabMachineOptions): Promise<LabMachine> => {
    const guestDir = join(dir, guest.name);
    mkdirSync(guestDir, { recursive: true });
    return LabMachine.start({ ...guest, dir: guestDir });
  };

  beforeAll(async () => {
    dir = scratchDir('service');
    repo = join(dir, 'repo');
    config = join(dir, 'cairn.toml');
    options = { dir };
    await cairn(['init', '--repo', repo], options);
    first = await newGuest(FIRST);
    await first.guest(gentleLoad(8));
    writeConfig('every = 1');
    service = start();
  });
  afterAll(async () => {
    service.child.kill('SIGTERM');
    await service.ended;
    await second.kill();
    await first.destroy();
    rmSync(dir, { recursive: true, force: true });
  });

  it('takes checkpoints of a VM that runs, and of one that comes', async () => {
    expect(await service.message(of('first'))).toMatchObject({ kind: 'base' });
    second = await newGuest(SECOND);
    expect(await service.message(of('second'))).toMatchObject({ kind: 'base' });
    expect(await nextOf('first')).toMatchObject({ kind: 'incremental', compare_reason: '' });
    expect(await nextOf('second')).toMatchObject({ kind: 'incremental', compare_reason: '' });
    const vms = await waitForStatus((all) => all.every(({ checkpoints }) => Number(checkpoints) > 1));
    expect(vms).toMatchObject([
      { name: 'first', policy: 'one', state: 'watched', problem: null },
      { name: 'second', policy: 'two', state: 'watched', problem: null },
    ]);
    expect(Number(vms[0]!.pause_p50_ms)).toBeGreaterThan(0);
  });

  it('knows that a VM has gone, and goes on with its chain when it comes back', async () => {
    await second.kill();
    await waitForStatus((all) => all.some(({ name, state }) => name === 'second' && state === 'gone'));
    second = await newGuest(SECOND);
    const compared = await nextOf('second');
    expect(compared.kind).toBe('incremental');
  });

  it('reads its file again by SIGHUP: one watcher is exchanged, the other goes on', async () => {
    writeConfig('every = 1\nkeep-last = 3');
    service.child.kill('SIGHUP');
    const isForget = (message: CliMessage): boolean =>
      'freed_bytes' in message && message.vm === first.address;
    await service.message(isForget);
    expect(await nextOf('first')).toMatchObject({ kind: 'incremental', compare_reason: '' });
    expect(await nextOf('second')).toMatchObject({ kind: 'incremental', compare_reason: '' });
  });

  it('goes on as it was when its file is wrong then, and says so', async () => {
    writeFileSync(config, 'nonsense');
    service.child.kill('SIGHUP');
    for (;;) {
      const said = await status();
      if (said.problem === '') continue;
      expect(said.problem).toContain('line 1');
      break;
    }
    expect(await nextOf('first')).toMatchObject({ kind: 'incremental', compare_reason: '' });
  });

  it('goes on without a new base, and without comparing all memory, after it was killed', async () => {
    writeConfig('every = 1');
    service.child.kill('SIGKILL');
    await service.ended;
    expect((await runCairn(['status'], options)).messages[0]).toMatchObject({ is_running: false });
    service = start();
    expect(await service.message(of('first'))).toMatchObject({ kind: 'incremental', compare_reason: '' });
    expect(await service.message(of('second'))).toMatchObject({ kind: 'incremental', compare_reason: '' });
    await waitForStatus((all) =>
      all.every(({ problem, checkpoints }) => problem === null && Number(checkpoints) > 4),
    );
  });

  it('has stored what is in the guests, and leaves them as they are', async () => {
    for (const machine of [first, second]) {
      const checkpoint_id = await stoppedCheckpoint(machine);
      const truth = await processTruth(machine);
      const differing = await differingFromStored(truth, repo, checkpoint_id);
      expect({ name: machine.name, differing }).toEqual({ name: machine.name, differing: [] });
      expect(await machine.qmp.status()).toBe('paused');
      await machine.qmp.command('cont');
    }
  });

  it('ends by SIGTERM with all of its watchers, and the guests go on', async () => {
    service.child.kill('SIGTERM');
    expect((await service.ended).exitCode).toBe(0);
    await first.waitForProgress();
    await second.waitForProgress();
    const { checkpoints } = await cairn(['list', '--repo', repo], options);
    const bases = (checkpoints as readonly CliMessage[]).filter(({ kind }) => kind === 'base');
    // The first one of the first guest may be forgotten by now; none came after it.
    expect(bases.filter(({ name }) => name === 'second')).toHaveLength(1);
    await cairn(['verify', '--repo', repo], options);
  });
});
