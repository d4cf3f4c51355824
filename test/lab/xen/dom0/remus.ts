/** Runs in dom0: Cairn as the receiver of `xl remus`. */

import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { framesSharedForWriting } from '../../../../adapters/xen/memory/shared-frames.js';
import { CAIRN_MAIN } from '../../../support/cairn-main.js';
import { isSummary, type CliMessage } from '../../support/cairn-cli.js';
import { GuestChain } from './chain.js';
import { check, type Context, type Figures, type Scenario } from './harness.js';
import { compareWithTruth, readMemory, withDomain, type OracleResult, type Truth } from './oracle.js';
import { changedSince } from './touched.js';
import { xl, XenGuest, type GuestOptions } from './xen-guest.js';

/** Long enough for a checkpoint in between: each state gets one of its own. */
const INTERVAL_MS = 8000;
const LIMIT_MS = 240_000;

/** `xl remus`, and the Cairn that it starts. */
class Remus {
  readonly ended: Promise<number>;
  readonly #log: string;
  readonly #pidFile: string;
  #said = '';
  #isOver = false;

  constructor(chain: GuestChain, { dir }: Context, label: string, args = '') {
    this.#log = join(dir, `${label}.log`);
    this.#pidFile = join(dir, `${label}.pid`);
    const receiver =
      `echo $$ >${this.#pidFile}; exec ${process.execPath} --no-warnings ${CAIRN_MAIN} receive ` +
      `--repo ${chain.repositoryPath} --workers 1 --json ${args} 2>${this.#log}`;
    const child = spawn(
      'xl',
      ['remus', '-F', '-n', '-d', '-i', String(INTERVAL_MS), '-s', '', chain.guest.name, receiver],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    for (const output of [child.stdout, child.stderr])
      output
        .setEncoding('utf8')
        .on('data', (text: string) => (this.#said = (this.#said + text).slice(-4000)));
    this.ended = new Promise((resolve) =>
      child.once('close', (code) => {
        this.#isOver = true;
        resolve(code ?? -1);
      }),
    );
  }

  get messages(): readonly CliMessage[] {
    if (!existsSync(this.#log)) return [];
    return readFileSync(this.#log, 'utf8')
      .split('\n')
      .slice(0, -1)
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as CliMessage);
  }

  /** The first message that fits; also one that was written before xl ended. */
  async message(fits: (message: CliMessage) => boolean): Promise<CliMessage> {
    const until = Date.now() + LIMIT_MS;
    for (;;) {
      const isLast = this.#isOver || Date.now() > until;
      const found = this.messages.find(fits);
      if (found !== undefined) return found;
      if (isLast) {
        const log = existsSync(this.#log) ? readFileSync(this.#log, 'utf8').slice(-2000) : '';
        throw new Error(`it does not come: ${log} xl: ${this.#said}`);
      }
      await sleep(200);
    }
  }

  /** The number of the last state that has come whole. */
  get lastState(): number {
    const task = this.messages.findLast(({ task }) => typeof task === 'string')?.task;
    return Number(String(task).split(' ')[1]);
  }

  signal(signal: NodeJS.Signals): void {
    process.kill(Number(readFileSync(this.#pidFile, 'utf8')), signal);
  }
}

interface Proven {
  readonly id: string;
  readonly tick: number;
  readonly oracle: OracleResult;
  readonly summary: CliMessage;
}

/** Checkpoints under load against the truth, another remus in the same chain, refusals of ballooning, restores. */
export function remusScenario(name: string, options: Omit<GuestOptions, 'name'>): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, churnKib: 256, ...options });
      const chain = await GuestChain.open(guest, context);
      const from = guest.lastTick();
      const first = new Remus(chain, context, 'first');
      const base = await first.message(isSummary);
      check(base.kind === 'base', 'the first is a base');
      const baseTicks = [from, guest.lastTick()] as const;
      context.say(`base: ${JSON.stringify(base)}`);
      const proven: Proven[] = [];
      for (let tries = 0; tries < 8 && proven.length < 3; tries++) {
        const one = await provenState(first, chain, context);
        if (one !== undefined) proven.push(one);
      }
      check(proven.length === 3, 'three states were compared with the truth');
      first.signal('SIGTERM');
      const exitCode = await first.ended;
      context.say(`remus ended with ${exitCode}: ${JSON.stringify(first.messages.at(-1))}`);
      await guest.countOn(2);
      check(!guest.state().includes('s'), 'the guest runs on');

      const second = new Remus(chain, context, 'second', '--count 2');
      await second.ended;
      const again = second.messages.filter(isSummary);
      check(again.length === 2, `two more: ${JSON.stringify(second.messages)}`);
      check(again[0]!.compare_reason !== '', 'after another remus all pages are compared');
      check(again[1]!.compare_reason === '', 'and then the stream is trusted');
      await guest.countOn(2);

      await refusedBallooning(chain, context);

      const exportBytes = await chain.verifyExport({ id: proven.at(-1)!.id } as never);
      guest.destroy();
      await chain.restore(
        { id: String(base.checkpoint_id), tick: baseTicks[0] },
        chain.repository,
        baseTicks[1],
      );
      for (const at of [0, 2]) {
        guest.destroy();
        await chain.restore(proven[at]!);
        check(guest.ticks().at(-1)?.cpus === (options.vcpus ?? 1), 'all processors run');
      }
      guest.destroy();
      return {
        exportBytes,
        checkpoints: [base, ...proven.map(({ summary }) => summary), ...again].map(figures),
        oracle: proven.map(({ oracle }) => oracle),
      };
    },
  };
}

function figures({
  kind,
  state,
  states,
  dirty_pages,
  pause_ms,
  total_ms,
  stored_bytes,
}: CliMessage): Figures {
  return { kind, state, states, dirty_pages, pause_ms, total_ms, stored_bytes };
}

/** Holds the receiver, so that the guest stands still for as long as its memory is read, and compares that with the checkpoint of this state. */
async function provenState(
  remus: Remus,
  { guest, repository }: GuestChain,
  { say }: Context,
): Promise<Proven | undefined> {
  const { domid } = guest;
  const taken = remus.messages.filter(isSummary).length;
  await remus.message((message) => isSummary(message) && remus.messages.filter(isSummary).length > taken);
  remus.signal('SIGSTOP');
  const until = Date.now() + LIMIT_MS;
  while (!withDomain(domid, (domain) => domain.info().isSuspended)) {
    if (Date.now() > until) throw new Error('the guest is not suspended');
    await sleep(100);
  }
  const state = remus.lastState + 1;
  const shared = withDomain(domid, framesSharedForWriting);
  const before = readMemory(domid, 'before');
  await sleep(300);
  const after = readMemory(domid, 'after');
  const touched = withDomain(domid, changedSince(before, after));
  check(
    withDomain(domid, (domain) => domain.info().isSuspended),
    'the guest stood still all the time',
  );
  const truth: Truth = { ...after, touched, shared, tick: guest.lastTick(), readMs: 0 };
  remus.signal('SIGCONT');
  const summary = await remus.message((message) => isSummary(message) && Number(message.state) >= state);
  if (summary.state !== state) {
    say(`state ${state} went into the checkpoint of ${String(summary.state)}`);
    return undefined;
  }
  const id = String(summary.checkpoint_id);
  const oracle = await compareWithTruth(repository.reader(await repository.find(id)), truth);
  const sharedDiffering = oracle.differingFrames.filter((frame) => shared.includes(frame));
  say(`differing and shared for writing: ${JSON.stringify(sharedDiffering)}`);
  say(`state ${state} tick ${truth.tick}: ${JSON.stringify(oracle)} ${JSON.stringify(figures(summary))}`);
  check(summary.compare_reason === '', 'the stream is trusted');
  check(oracle.differing === 0, `no page differs (${oracle.differing} do)`);
  check(oracle.missing === 0 && oracle.surplus === 0, 'the same frames');
  return { id, tick: truth.tick, oracle, summary };
}

/** While it runs, and before it starts. In both cases the guest runs on. */
async function refusedBallooning(chain: GuestChain, context: Context): Promise<void> {
  const { guest } = chain;
  const refusedWith = async (remus: Remus): Promise<void> => {
    const error = await remus.message(({ message_type }) => message_type === 'error');
    context.say(`refused: ${JSON.stringify(error)}`);
    check(error.code === 'VM_UNSUPPORTED' && error.exit_code === 22, 'it is refused');
    check(JSON.stringify(error).includes('XEN_BALLOON'), 'because it balloons');
    await remus.ended;
    await guest.countOn(2);
  };
  const during = new Remus(chain, context, 'during');
  await during.message(isSummary);
  xl('mem-set', guest.name, '100');
  await refusedWith(during);
  const until = Date.now() + LIMIT_MS;
  while (guest.memoryMib() > 101 && Date.now() < until) await sleep(200);
  const start = new Remus(chain, context, 'start');
  await refusedWith(start);
  check(start.messages.filter(isSummary).length === 0, 'before the first checkpoint');
}
