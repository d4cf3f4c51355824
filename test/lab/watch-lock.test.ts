/**
 * A watcher on a real guest that loses the lock of its chain: the guest is not paused for a checkpoint that could not be committed, nothing of
 * such a checkpoint stays, and the watcher takes the chain again when nobody else has it.
 */

import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { openBackend, Repository } from '../../src/index.js';
import type { ChainWriter } from '../../src/repository/chain-writer.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import { PauseHold, differingFromStored, warningsOf } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';
import { isRunEvent } from './support/stopped-cairn.js';

const CHAIN = 'watched';
const REFUSALS = 3;

describe.each(['pagemap-scan', 'qmp-stream'])('a watcher that takes checkpoints by %s', (tracker) => {
  let machine: LabMachine;
  let options: CliOptions;
  let repo: string;
  let hold: PauseHold;
  let watch: CairnProcess;
  let taken = 0;

  beforeAll(async () => {
    machine = await LabMachine.start({ name: CHAIN, memoryMib: 96 });
    options = { dir: machine.dir };
    repo = join(machine.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest(gentleLoad(8));
    hold = new PauseHold(machine.dir);
    const args = ['watch', machine.address, '--repo', repo, '--every', '0.2', '--hook', hold.command];
    watch = new CairnProcess([...args, '--tracker', tracker], options);
  });
  afterAll(async () => {
    watch.child.kill('SIGTERM');
    // The hook of a checkpoint under way waits for it.
    hold.release();
    await watch.ended;
    await machine.destroy();
  });

  const isLocked = (message: CliMessage): boolean => message.code === 'REPO_LOCKED';
  const errors = (): readonly CliMessage[] =>
    watch.messages.filter(({ message_type }) => message_type === 'error');
  const locks = (): readonly string[] => readdirSync(join(repo, 'vms', CHAIN, 'locks'));
  const checkpoints = (): readonly string[] => readdirSync(join(repo, 'vms', CHAIN, 'checkpoints'));

  /** The next checkpoint, which must be exact. @returns what the watcher said of it */
  async function expectExact(): Promise<{
    readonly summary: CliMessage;
    readonly warnings: readonly string[];
  }> {
    const before = watch.messages.length;
    await hold.reached(watch);
    const truth = await processTruth(machine);
    hold.release();
    const summary = await watch.message(isSummary, taken++);
    expect(await differingFromStored(truth, repo, String(summary.checkpoint_id))).toEqual([]);
    // Hardly one is done in 0.2 s.
    const warnings = warningsOf(watch.messages.slice(before)).filter((text) => !text.includes('comes late'));
    return { summary, warnings };
  }

  async function takeByForce(): Promise<ChainWriter> {
    const repository = await Repository.open(openBackend(repo));
    const { identity } = await repository.find('latest');
    await repository.unlock(CHAIN, { force: true });
    return repository.openChainWriter(CHAIN, identity);
  }

  it('takes them', async () => {
    expect((await expectExact()).summary).toMatchObject({ kind: 'base', tracker });
    expect((await expectExact()).summary).toMatchObject({ kind: 'incremental', compare_reason: '' });
    expect(locks()).toHaveLength(1);
  });

  it('drops the checkpoint in whose pause its lock was removed, and takes the lock again for the next', async () => {
    await hold.reached(watch);
    const before = checkpoints();
    for (const name of locks()) rmSync(join(repo, 'vms', CHAIN, 'locks', name));
    hold.release();
    expect(await watch.message(isLocked)).toMatchObject({ message_type: 'error', detail: { lost: true } });
    // No other comes to its end meanwhile: the hook holds it.
    expect(checkpoints()).toEqual(before);
    expect((await expectExact()).warnings).toContainEqual(expect.stringContaining('taken again'));
    expect((await expectExact()).warnings).toEqual([]);
    expect(locks()).toHaveLength(1);
  });

  it('pauses nothing while another owner has its chain, and takes it again after that', async () => {
    await hold.reached(watch);
    const before = checkpoints();
    const failed = errors().length;
    const other = await takeByForce();
    await machine.qmp.status();
    const seen = machine.qmp.events.length;
    hold.release();
    await watch.message(isLocked, failed + REFUSALS);
    expect(await machine.qmp.status()).toBe('running');
    expect(machine.qmp.events.slice(seen).filter(isRunEvent)).toEqual(['RESUME']);
    expect(errors().at(-1)).toMatchObject({
      code: 'REPO_LOCKED',
      message: expect.stringContaining(`process ${process.pid}`) as unknown,
    });
    expect(checkpoints()).toEqual(before);
    await machine.waitForProgress();
    await other.close();
    expect((await expectExact()).warnings).toContainEqual(expect.stringContaining('taken again'));
    expect((await expectExact()).warnings).toEqual([]);
  });

  it('leaves a whole repository, unlocked', async () => {
    watch.child.kill('SIGTERM');
    hold.release();
    await watch.ended;
    expect(locks()).toEqual([]);
    expect(await cairn(['verify', '--repo', repo], options)).toMatchObject({ problems: [] });
    expect(await machine.qmp.status()).toBe('running');
  });
});
