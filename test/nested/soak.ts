/**
 * The soak: very many checkpoints, each compared with the memory of the stopped VM, a new machine every 250.
 *
 *     node dist/test/nested/soak.js [--checkpoints 10000] [--nested bookworm|bookworm-backports] [--tracker auto]
 *         [--qemu 7.2] [--life 250] [--state FILE] [--result FILE]
 *
 * On this host, or with --nested on real KVM in the nested lab. What is done is kept in the state file: started again with the
 * same one it goes on, and it can be stopped at any time. Ends with status 1 when a page was wrong. --result keeps what came out in
 * a file of results, in place of an earlier one of the same host, tracker and QEMU.
 */

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { labCache } from '../lab/support/lab-files.js';
import { parseLines, type TruthLine } from '../truth/truth-line.js';
import { runNested, type NestedSuite } from './nested-machine.js';

const LIFE_TIMEOUT_MS = 6 * 3_600_000;
/** As `soak-life.ts` answers it. */
const ENDED_BY_SIGTERM = 143;
const LINES_BETWEEN_PROGRESS = 50;

interface State {
  checkpoints: number;
  lives: number;
  seconds: number;
  /** Checkpoints by tracker. */
  trackers: Record<string, number>;
  /** Checkpoints in which all pages were compared, by reason. */
  compared: Record<string, number>;
  /** Checkpoints by what was done before them. */
  deeds: Record<string, number>;
  dirtyPages: number;
  liveRounds: number;
  kernel: string;
  accelerator: string;
  /** Checkpoints that differ, and lives that ended otherwise than they should. */
  readonly wrong: TruthLine[];
  readonly failures: string[];
}

const { values } = parseArgs({
  options: {
    checkpoints: { type: 'string', default: '10000' },
    nested: { type: 'string' },
    tracker: { type: 'string', default: 'auto' },
    qemu: { type: 'string', default: '7.2' },
    life: { type: 'string', default: '250' },
    state: { type: 'string' },
    result: { type: 'string' },
  },
});
const wanted = Number(values.checkpoints);
const where = [values.nested ?? 'host', values.tracker, values.qemu].join('-');
const path = values.state ?? join(labCache(), 'soak', `${where}.json`);
const state = readState();

process.stdout.write(
  `soak on ${where}; state in ${path}; ${state.checkpoints} of ${wanted} checkpoints done\n`,
);
while (state.checkpoints < wanted && state.wrong.length + state.failures.length === 0) {
  const left = Math.min(Number(values.life), wanted - state.checkpoints);
  const program = ['dist/test/truth/soak-life.js', `${left}`, `${state.lives}`, values.tracker, values.qemu];
  let from = Date.now();
  const onLine = (line: TruthLine): void => {
    if (line.event === 'started')
      Object.assign(state, { kernel: line.kernel, accelerator: line.accelerator });
    if (line.event === 'failed') state.failures.push(line.message);
    if (line.event !== 'checkpoint') return;
    state.checkpoints++;
    state.seconds += (Date.now() - from) / 1000;
    from = Date.now();
    state.dirtyPages += line.dirtyPages;
    state.liveRounds += line.rounds;
    count(state.trackers, line.tracker);
    count(state.deeds, line.step);
    if (line.compareReason !== '') count(state.compared, line.compareReason);
    if (line.differing.length > 0) state.wrong.push(line);
    writeState();
    if (state.checkpoints % LINES_BETWEEN_PROGRESS === 0) process.stdout.write(`${progress()}\n`);
  };
  if (values.nested === undefined) await liveHere(program, onLine);
  else await runNested({ suite: values.nested as NestedSuite, program, timeoutMs: LIFE_TIMEOUT_MS, onLine });
  state.lives++;
  writeState();
}
if (values.result !== undefined) writeResult(values.result);
process.stdout.write(`${progress()}\n`);
for (const line of state.wrong) process.stdout.write(`wrong: ${JSON.stringify(line)}\n`);
for (const failure of state.failures) process.stdout.write(`failed: ${failure}\n`);
process.exit(state.wrong.length + state.failures.length === 0 ? 0 : 1);

/** In a process of its own, which takes its machine along when it ends. */
async function liveHere(program: readonly string[], onLine: (line: TruthLine) => void): Promise<void> {
  const root = fileURLToPath(new URL('../../../', import.meta.url));
  const child = spawn(
    process.execPath,
    ['--single-threaded-gc', join(root, program[0]!), ...program.slice(1)],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      // The first life found out; booting under a KVM that cannot takes a while.
      env: { ...process.env, ...(state.accelerator === '' ? {} : { CAIRN_ACCELERATOR: state.accelerator }) },
    },
  );
  const end = (): void => void child.kill('SIGTERM');
  process.once('SIGTERM', end).once('SIGINT', end);
  let text = '';
  let seen = 0;
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    const lines = parseLines(text);
    lines.slice(seen).forEach(onLine);
    seen = lines.length;
  });
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) =>
    child.once('close', (...how) => resolve(how)),
  );
  process.off('SIGTERM', end).off('SIGINT', end);
  if (signal !== null || code === ENDED_BY_SIGTERM) {
    if (values.result !== undefined) writeResult(values.result);
    process.stdout.write(`stopped; start it again to go on\n${progress()}\n`);
    process.exit(130);
  }
  if (code !== 0 && state.failures.length === 0)
    state.failures.push(`a life ended with status ${code ?? '?'}`);
}

function count(counts: Record<string, number>, name: string): void {
  counts[name] = (counts[name] ?? 0) + 1;
}

/** One entry for each host, tracker and QEMU. */
function writeResult(file: string): void {
  const [cpu] = cpus();
  const { seconds, wrong, failures, ...counted } = state;
  const entry = {
    where,
    date: new Date().toISOString().slice(0, 10),
    machine: { cpu: cpu?.model ?? 'unknown', cores: cpus().length, kernel: release() },
    qemu: values.qemu,
    ...counted,
    seconds: Math.round(seconds),
    wrong: wrong.length,
    failures: failures.length,
  };
  const all = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as (typeof entry)[]) : [];
  const others = all.filter((one) => one.where !== where);
  const sorted = [...others, entry].sort((a, b) => (a.where < b.where ? -1 : 1));
  writeFileSync(file, `${JSON.stringify(sorted, null, 1)}\n`);
}

function progress(): string {
  const each = state.seconds / Math.max(1, state.checkpoints);
  const hoursLeft = ((wanted - state.checkpoints) * each) / 3600;
  return (
    `${state.checkpoints} of ${wanted} checkpoints, ${state.wrong.length} wrong, ${each.toFixed(2)} s each, ` +
    `${hoursLeft.toFixed(1)} h left, trackers ${JSON.stringify(state.trackers)}, compared ${JSON.stringify(state.compared)}`
  );
}

function readState(): State {
  if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8')) as State;
  return {
    ...{ checkpoints: 0, lives: 0, seconds: 0, trackers: {}, compared: {}, deeds: {}, dirtyPages: 0 },
    ...{ liveRounds: 0, kernel: '', accelerator: '', wrong: [], failures: [] },
  };
}

function writeState(): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, JSON.stringify(state));
  renameSync(`${path}.new`, path);
}
