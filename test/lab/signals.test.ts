/** A real guest whose Cairn gets a signal, or loses the reader of its output, at a bad moment: the command ends, and the guest goes on. */

import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { EXIT } from '../../src/cli/exit-codes.js';
import { LabMachine } from './machine.js';
import { gentleLoad } from './support/guest-loads.js';
import { CairnProcess, cairn, isSummary, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { checkpointAgainstTruth, PauseHold } from './support/oracle.js';
import { childrenOf, isAlive, StoppedCairn } from './support/stopped-cairn.js';

const SIGNALS = ['SIGHUP', 'SIGTERM', 'SIGINT', 'SIGQUIT'] as const;
/** Longer than any test: whoever waits for the next checkpoint of a watcher waits for good. */
const NEVER = ['--every', '100000'];
/** Far above what a guard needs to end. */
const END_LIMIT_MS = 20_000;

describe('a guest whose Cairn is to end', () => {
  let machine: LabMachine;
  let options: CliOptions & { readonly repo: string };
  let holdCount = 0;
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'signals', memoryMib: 96 });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(16));
    await cairn(['checkpoint', machine.address, '--repo', options.repo], options);
  });
  afterAll(() => machine.destroy());

  const started = (command: 'checkpoint' | 'watch', ...more: readonly string[]): CairnProcess =>
    new CairnProcess([command, machine.address, '--repo', options.repo, ...more], options);

  /** A hook that hangs in the pause. In a folder of its own: what a killed one leaves must not look like the hold of the next. */
  function hangingHook(): PauseHold {
    const dir = join(machine.dir, `hook-${++holdCount}`);
    mkdirSync(dir);
    return new PauseHold(dir);
  }

  /** What there is on the disk of repository and runtime folder. */
  function files(): readonly string[] {
    return [
      ...readdirSync(options.repo, { recursive: true, encoding: 'utf8' }),
      ...readdirSync(join(options.dir, 'runtime')),
    ].sort();
  }

  async function expectRunning(): Promise<void> {
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForProgress();
  }

  /** Its guards and other helpers, too. */
  async function expectGone(processes: readonly number[]): Promise<void> {
    const until = Date.now() + END_LIMIT_MS;
    while (processes.some(isAlive) && Date.now() < until) await sleep(10);
    expect(processes.filter(isAlive)).toEqual([]);
  }

  /** @returns its summary */
  async function expectNextIsExact(): Promise<CliMessage> {
    const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
    expect(differing).toEqual([]);
    return summary;
  }

  it.each(SIGNALS)('goes on when %s comes while a hook hangs in the pause', async (signal) => {
    const before = files();
    const hook = hangingHook();
    const taking = started('checkpoint', '--hook', hook.command);
    await hook.reached(taking);
    expect(await machine.qmp.status()).toBe('paused');
    const helpers = childrenOf(taking.child.pid!);
    taking.child.kill(signal);
    const { exitCode, messages } = await taking.ended;
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: EXIT.interrupted,
      error: { code: 'INTERRUPTED' },
    });
    await expectRunning();
    await expectGone(helpers);
    expect(files()).toEqual(before);
    await expectNextIsExact();
  });

  it.each(['SIGHUP', 'SIGINT'] as const)(
    'goes on when %s comes to a watcher whose hook hangs in the pause',
    async (signal) => {
      const before = files();
      const hook = hangingHook();
      const watch = started('watch', ...NEVER, '--hook', hook.command);
      await hook.reached(watch);
      const helpers = childrenOf(watch.child.pid!);
      watch.child.kill(signal);
      const { exitCode, messages } = await watch.ended;
      expect({ exitCode, summary: messages.at(-1) }).toMatchObject({
        exitCode: EXIT.ok,
        summary: { message_type: 'summary', checkpoints: 0, failed: 0 },
      });
      await expectRunning();
      await expectGone(helpers);
      expect(files()).toEqual(before);
      await expectNextIsExact();
    },
  );

  it.each(['SIGTERM', 'SIGQUIT'] as const)(
    'has its tracker go on when %s comes to a watcher between checkpoints',
    async (signal) => {
      const watch = started('watch', ...NEVER);
      await watch.message(isSummary);
      const helpers = childrenOf(watch.child.pid!);
      watch.child.kill(signal);
      const { exitCode, messages } = await watch.ended;
      expect({ exitCode, summary: messages.at(-1) }).toMatchObject({
        exitCode: EXIT.ok,
        summary: { message_type: 'summary', checkpoints: 1, failed: 0 },
      });
      await expectRunning();
      await expectGone(helpers);
      expect(await expectNextIsExact()).toMatchObject({ kind: 'incremental', compare_reason: '' });
    },
  );

  it('ran already when SIGTERM comes while its pages are encoded', async () => {
    const before = files();
    const taking = await StoppedCairn.at(
      'duringEncode',
      ['checkpoint', machine.address, '--repo', options.repo],
      options,
    );
    await expectRunning();
    const { exitCode, messages } = await taking.goOn('SIGTERM');
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: EXIT.interrupted,
      error: { code: 'INTERRUPTED' },
    });
    await expectRunning();
    expect(files()).toEqual(before);
    await expectNextIsExact();
  });

  it('goes on when nobody reads the output any more: there is no checkpoint, and no message', async () => {
    const before = files();
    const hook = hangingHook();
    const taking = started('checkpoint', '--hook', hook.command);
    await hook.reached(taking);
    const helpers = childrenOf(taking.child.pid!);
    taking.child.stdout!.destroy();
    // It is the next line that nobody takes.
    hook.release();
    expect(await taking.ended).toMatchObject({ exitCode: EXIT.interrupted, stderr: '' });
    await expectRunning();
    await expectGone(helpers);
    expect(files()).toEqual(before);
    await expectNextIsExact();
  });

  it('goes on when nobody reads what a watcher says any more, who keeps the checkpoint under way', async () => {
    const hook = hangingHook();
    const watch = started('watch', ...NEVER, '--hook', hook.command);
    await hook.reached(watch);
    const helpers = childrenOf(watch.child.pid!);
    watch.child.stdout!.destroy();
    hook.release();
    expect(await watch.ended).toMatchObject({ exitCode: EXIT.ok, stderr: '' });
    await expectRunning();
    await expectGone(helpers);
    expect(await expectNextIsExact()).toMatchObject({ kind: 'incremental', compare_reason: '' });
  });

  it('has a whole repository after all of them', async () => {
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });
});
