/** Locks of a repository between two hosts that mount it. */

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { EXIT } from '../../src/cli/exit-codes.js';
import { verifyRepository } from '../golden/verifier.js';
import { cairn, CairnProcess, runCairn } from '../lab/support/cairn-cli.js';
import { stopBefore } from '../lab/support/stop-before-call.js';
import { importArgs, smallStream } from './nfs-imports.js';
import { AWAY_MS, checked, must, stopped, type Place } from './nfs-place.js';
import { NfsServer } from './nfs-server.js';

const WRITER = fileURLToPath(new URL('./nfs-writer.js', import.meta.url));
const CHAIN = 'locks';
/** Of imports, which are of another VM. */
const FENCED = 'fenced';
const ROUNDS = 8;
const BEAT_MS = 2000;

interface Hosts {
  readonly server: NfsServer;
  readonly a: Place;
  readonly b: Place;
  readonly dir: string;
}

export async function tryLocks(hosts: Hosts): Promise<void> {
  await cairn(['init', '--repo', hosts.a.repo], { dir: hosts.dir });
  await exclusion(hosts);
  await force(hosts);
  await fence(hosts);
  await restart(hosts);
  await killed(hosts);
}

/** Of host b. */
function optionsOfB(dir: string): { readonly dir: string; readonly startedBy: readonly string[] } {
  return { dir: join(dir, 'b'), startedBy: NfsServer.asHostB };
}

/** Of two that come at once at most one has the lock. */
async function exclusion({ a, b }: Hosts): Promise<void> {
  const writers = [await Writer.start(a.repo), await Writer.start(b.repo, NfsServer.asHostB)] as const;
  const held = [0, 0];
  for (let round = 0; round < ROUNDS; round++) {
    const answers = await Promise.all(writers.map((writer) => writer.order('take')));
    const isClear = answers.every((one) => one === 'held' || one === 'REPO_LOCKED');
    must('not both have it', isClear && answers.filter((one) => one === 'held').length <= 1, answers);
    for (const [i, writer] of writers.entries()) {
      if (answers[i] !== 'held') continue;
      held[i]! += 1;
      must('it has it still', (await writer.order('held?')) === 'held');
    }
    for (const writer of writers) await writer.order('release');
  }
  for (const [holder, other] of [writers, writers.toReversed()] as const) {
    must('alone', (await holder.order('take')) === 'held');
    must('the other one is refused', (await other.order('take')) === 'REPO_LOCKED');
    await holder.order('release');
  }
  for (const writer of writers) writer.kill();
  checked(`${a.what}: two hosts at once, ${ROUNDS} times: ${held.join(' and ')} times held, never by both`);
}

/** What another host has taken by force is missed at once. */
async function force({ a, b, dir }: Hosts): Promise<void> {
  const holder = await Writer.start(a.repo);
  must('taken', (await holder.order('take')) === 'held');
  must('known to the client', (await holder.order('held?')) === 'held');
  await cairn(['unlock', CHAIN, '--force', '--repo', b.repo], optionsOfB(dir));
  const answer = await holder.order('held?');
  must('the loss is seen', answer === 'REPO_LOCKED', answer);
  holder.kill();
  checked(`${a.what}: a lock that another host has removed is missed at once`);
}

/** A writer that has lost its lock to another host does not commit. */
async function fence({ a, b, dir }: Hosts): Promise<void> {
  const stream = join(dir, 'fence.mig');
  writeFileSync(stream, await smallStream(0));
  const loser = new CairnProcess(importArgs(stream, a.repo, FENCED), {
    dir,
    env: stopBefore('open', '/checkpoints/~'),
  });
  await stopped(loser);
  await cairn(['unlock', FENCED, '--force', '--repo', b.repo], optionsOfB(dir));
  const winner = await cairn(importArgs(stream, b.repo, FENCED), optionsOfB(dir));
  loser.child.kill('SIGCONT');
  const { exitCode, messages } = await loser.ended;
  const there = verifyRepository(a.onServer).map(({ id }) => id);
  must('there is one checkpoint', there.join() === winner.checkpoint_id, { there, messages });
  must('the loser fails', exitCode === EXIT.locked, messages);
  checked(`${a.what}: a writer that has lost its lock to another host does not commit`);
}

/** The server is restarted while one host holds a lock and the other one looks whether it lives. */
async function restart({ server, a, b, dir }: Hosts): Promise<void> {
  const holder = await Writer.start(a.repo);
  must('taken', (await holder.order('take')) === 'held');
  const unlock = new CairnProcess(['unlock', CHAIN, '--repo', b.repo], optionsOfB(dir));
  await sleep(AWAY_MS);
  server.down();
  // Longer than its owner may be silent.
  await sleep(5 * BEAT_MS);
  must('it waits', !unlock.isOver);
  server.up();
  const refused = await unlock.ended;
  must('the lock of a living writer stays', refused.exitCode === EXIT.locked, refused);
  const answer = await holder.order('held?');
  must('and its owner has it', answer === 'held', answer);
  const other = await Writer.start(b.repo, NfsServer.asHostB);
  must('nobody else', (await other.order('take')) === 'REPO_LOCKED');
  other.kill();
  await holder.order('release');
  holder.kill();
  checked(`${a.what}: the server is restarted under a lock, which is known before and after`);
}

/** The lock of one that was killed is free on its own host at once, and elsewhere after a silence. */
async function killed({ a, b, dir }: Hosts): Promise<void> {
  for (const [{ repo }, options] of [
    [a, { dir }],
    [b, optionsOfB(dir)],
  ] as const) {
    const holder = await Writer.start(a.repo);
    must('taken', (await holder.order('take')) === 'held');
    const refused = await runCairn(['unlock', CHAIN, '--repo', repo], options);
    must('a living lock stays', refused.exitCode === EXIT.locked, refused);
    holder.kill();
    await holder.ended;
    const { removed } = await cairn(['unlock', CHAIN, '--repo', repo], options);
    must('a dead one goes', (removed as readonly unknown[]).length === 1, removed);
  }
  checked(`${a.what}: unlock refuses a living lock and removes that of a killed writer, on both hosts`);
}

/** `nfs-writer.ts`. */
class Writer {
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly ended: Promise<unknown>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#lines = createInterface(child.stdout!);
    this.ended = once(child, 'exit');
  }

  static async start(repo: string, startedBy: readonly string[] = []): Promise<Writer> {
    const command = [...startedBy, process.execPath, WRITER, repo, CHAIN, `${BEAT_MS}`];
    const writer = new Writer(spawn(command[0]!, command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] }));
    await once(writer.#lines, 'line');
    return writer;
  }

  async order(word: string): Promise<string> {
    const answer = once(this.#lines, 'line');
    this.#child.stdin!.write(`${word}\n`);
    const [said] = (await answer) as [string];
    return said;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
