/**
 * Others who use the same QEMU between checkpoints: its own background snapshot, which needs what the tracker holds, a
 * migration, and a snapshot that is loaded in the middle of a chain.
 */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine, type LabDevice } from './machine.js';
import { CairnProcess, cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';
import { checkpointAgainstTruth } from './support/oracle.js';

const MEMORY_MIB = 96;

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
afterEach(() => machine.destroy());

async function start(
  devices: readonly LabDevice[] = [],
  extraArgs: (dir: string) => readonly string[] = () => [],
): Promise<void> {
  const dir = scratchDir('release');
  const memoryMib = MEMORY_MIB;
  machine = await LabMachine.start({ name: 'shared', dir, memoryMib, devices, extraArgs: extraArgs(dir) });
  options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
}

const take = (...more: readonly string[]): string[] => [
  'checkpoint',
  machine.address,
  '--repo',
  options.repo,
  ...more,
];
const isArmed = async (address = machine.address): Promise<boolean> => {
  const { trackers } = (await cairn(['doctor', address], options)) as unknown as {
    readonly trackers: readonly { readonly armed?: boolean }[];
  };
  return trackers.some(({ armed }) => armed === true);
};

/** QEMU's own, by userfaultfd; ends with the state of the migration, or with QEMU's refusal. */
async function backgroundSnapshot(name: string): Promise<string> {
  const switched = (state: boolean): Promise<unknown> =>
    machine.qmp.command('migrate-set-capabilities', {
      capabilities: [{ capability: 'background-snapshot', state }],
    });
  try {
    await switched(true);
    await machine.qmp.command('migrate', { uri: `exec:cat >${join(machine.dir, name)}` });
    for (;;) {
      const { status } = (await machine.qmp.command('query-migrate')) as { readonly status: string };
      if (['completed', 'failed', 'cancelled'].includes(status)) return status;
      await sleep(50);
    }
  } catch (error) {
    return `refused: ${String(error)}`;
  } finally {
    await switched(false);
  }
}

describe('a VM that checkpoints were taken of', () => {
  it('is let go of by cairn release: QEMU can snapshot it again, and the chain goes on exactly', async () => {
    await start();
    expect(await isArmed()).toBe(false);
    await cairn(take(), options);
    expect(await isArmed()).toBe(true);
    expect(await backgroundSnapshot('armed')).not.toBe('completed');

    expect(await cairn(['release', machine.address], options)).toMatchObject({ released: ['pagemap-scan'] });
    expect(await isArmed()).toBe(false);
    expect(await backgroundSnapshot('released')).toBe('completed');
    await machine.waitForProgress();
    expect(await cairn(['release', machine.address], options)).toMatchObject({ released: [] });

    for (const isFirst of [true, false]) {
      const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
      expect(differing).toEqual([]);
      expect(summary.kind).toBe('incremental');
      expect(summary.compare_reason !== '').toBe(isFirst);
    }
  });

  it('is let go of by a checkpoint with --release', async () => {
    await start();
    await cairn(take('--release'), options);
    expect(await isArmed()).toBe(false);
    expect(await backgroundSnapshot('released')).toBe('completed');
    await machine.waitForProgress();
  });

  it('is not taken away from a watcher', async () => {
    await start([], (dir) => ['-qmp', `unix:${dir}/second.sock,server=on,wait=off`]);
    const second = `qmp:${machine.dir}/second.sock`;
    const watcher = new CairnProcess(
      ['watch', machine.address, '--repo', options.repo, '--every', '300'],
      options,
    );
    try {
      while (!(await isArmed(second)) && !watcher.isOver) await sleep(100);
      const { exitCode, messages } = await runCairn(['release', second], options);
      expect(exitCode).toBe(11);
      expect(messages.at(-1)).toMatchObject({ code: 'VM_LOCKED' });
      expect(await isArmed(second)).toBe(true);
    } finally {
      watcher.child.kill('SIGTERM');
      await watcher.ended;
    }
  });
});

/** Moves the VM to another QEMU, which runs it before it has all of its memory. @returns that one, and what QEMU says of it */
async function postcopy(): Promise<{ readonly there: LabMachine; readonly status: string }> {
  const dir = scratchDir('release');
  const uri = `unix:${dir}/incoming`;
  const there = await LabMachine.start({
    ...{ name: 'shared', dir, memoryMib: MEMORY_MIB, noWait: true },
    extraArgs: ['-incoming', uri],
  });
  const switched = (one: LabMachine, state: boolean): Promise<unknown> =>
    one.qmp.command('migrate-set-capabilities', { capabilities: [{ capability: 'postcopy-ram', state }] });
  await switched(machine, true);
  await switched(there, true);
  // So slow that most of the memory is still here when it goes on there.
  await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 4 << 20 });
  await machine.qmp.command('migrate', { uri });
  const statusWhile = async (...passing: readonly string[]): Promise<string> => {
    for (;;) {
      const { status } = (await machine.qmp.command('query-migrate')) as { readonly status: string };
      if (!passing.includes(status)) return status;
      await sleep(50);
    }
  };
  await statusWhile('setup');
  await machine.qmp.command('migrate-start-postcopy');
  await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 1 << 30 });
  const status = await statusWhile('active', 'device', 'postcopy-active');
  await switched(there, false);
  return { there, status };
}

describe('a migration with postcopy', () => {
  it.each([
    ['while the tracker is armed', false],
    ['once Cairn has let go of it', true],
  ])('takes a VM elsewhere %s, and its chain goes on there', async (_, isReleased) => {
    await start();
    await machine.guest('lab fill 24');
    await cairn(take(), options);
    if (isReleased) await cairn(['release', machine.address], options);
    const { there, status } = await postcopy();
    try {
      expect(status).toBe('completed');
      await there.waitForProgress();
      await machine.kill();
      const { summary, differing } = await checkpointAgainstTruth(there, [], options);
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ kind: 'incremental' });
      expect(summary.compare_reason).not.toBe('');
    } finally {
      await there.destroy();
    }
  });
});

describe('a checkpoint is right after somebody else', () => {
  const hmp = (line: string): Promise<unknown> =>
    machine.qmp.command('human-monitor-command', { 'command-line': line });

  /** Each between two checkpoints of one chain. */
  const OTHERS: readonly (readonly [string, () => Promise<void>])[] = [
    [
      'has loaded a snapshot of the VM',
      async () => {
        expect(await hmp('savevm other')).toBe('');
        await machine.guest('lab fill 20');
        await cairn(take(), options);
        expect(await hmp('loadvm other')).toBe('');
      },
    ],
    [
      'has begun a migration and given it up',
      async () => {
        await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 1 << 20 });
        await machine.qmp.command('migrate', { uri: `exec:cat >${join(machine.dir, 'given-up')}` });
        await sleep(500);
        await machine.qmp.command('migrate_cancel');
      },
    ],
    [
      'has migrated it into a file, and let it go on',
      async () => {
        await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 1 << 30 });
        await machine.qmp.command('migrate', { uri: `exec:cat >${join(machine.dir, 'migrated')}` });
        for (;;) {
          const { status } = (await machine.qmp.command('query-migrate')) as { readonly status: string };
          if (status === 'completed') break;
          expect(status).not.toBe('failed');
          await sleep(50);
        }
        await machine.qmp.command('cont');
      },
    ],
  ];

  it.each(OTHERS)('%s', async (_, meddle) => {
    await start(['disk']);
    await cairn(take(), options);
    await meddle();
    await machine.waitForProgress();
    await machine.guest('lab fill 4');
    const { differing } = await checkpointAgainstTruth(machine, [], options);
    expect(differing).toEqual([]);
  });
});
