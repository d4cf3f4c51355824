/**
 * Runs test files in processes of jest: those of the fast tiers two at a time, those of the lab each in a process of its own, so that the guest
 * memory that a file holds goes with its process. Sums up in the end.
 *
 *     node run-apart.js READY [fast:PATTERN,PATTERN] [PATTERN...]
 *
 *     fast tiers --> READY exists --+--> file --> file --> ... -------------------+--> N passed, N failed
 *                                   +--> those of FIRST --> files from the end ---+
 *
 * A file that could not be run counts as one failed test.
 */

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const JEST = fileURLToPath(new URL('../../../node_modules/jest/bin/jest.js', import.meta.url));
const FAST = 'fast:';
/** Each is one emulated machine from end to end, and takes longest: the second of the two lanes begins with them. */
const FIRST = ['xen', 'nested', 'lvm', 'nfs'];
const READY_POLL_MS = 200;
const PEAK_POLL_MS = 1000;

interface Job {
  readonly name: string;
  readonly args: readonly string[];
  /** It is run in the second lane, before anything else. */
  readonly isFirst: boolean;
}

interface Outcome {
  readonly name: string;
  readonly seconds: number;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** Most memory that the process of jest had at once; of the fast tiers without that of its two workers. */
  readonly peakMib: number;
}

/** What is read of `jest --json`. */
interface JestReport {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly numRuntimeErrorTestSuites: number;
  readonly success: boolean;
}

function fastJob(word: string): Job {
  const patterns = word.slice(FAST.length).split(',');
  return { name: 'fast tiers', args: ['--maxWorkers=2', ...patterns], isFirst: false };
}

function jobsOf(patterns: readonly string[]): readonly Job[] {
  if (patterns.length === 0) return [];
  const listed = execFileSync(process.execPath, [JEST, '--listTests', ...patterns], { encoding: 'utf8' });
  const files = listed.split('\n').filter((line) => line !== '');
  if (files.length === 0) throw new Error(`no test file fits ${patterns.join(' ')}`);
  return files.sort().map((file) => {
    const name = basename(file, '.test.js');
    // A test that fails may leave a guest or a socket behind, which must not keep the run from ending; hence --forceExit.
    const args = ['--runInBand', '--forceExit', '--runTestsByPath', file];
    return { name, args, isFirst: files.length > 1 && FIRST.includes(name) };
  });
}

/** @param isShown output appears as it comes; else when the file is through */
async function run(job: Job, reports: string, isShown: boolean): Promise<Outcome> {
  const report = join(reports, `${job.name.replace(' ', '-')}.json`);
  const started = performance.now();
  const child = spawn(process.execPath, [JEST, ...job.args, '--json', `--outputFile=${report}`], {
    stdio: isShown ? ['ignore', 'inherit', 'inherit'] : ['ignore', 'pipe', 'pipe'],
  });
  const output: Buffer[] = [];
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', (part: Buffer) => output.push(part));
  let peakMib = 0;
  const poll = setInterval(() => (peakMib = Math.max(peakMib, peakMibOf(child.pid))), PEAK_POLL_MS);
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject).once('close', resolve);
  }).finally(() => clearInterval(poll));
  for (const part of output) process.stderr.write(part);
  const measured = { name: job.name, seconds: (performance.now() - started) / 1000, peakMib };
  if (!existsSync(report)) return { ...measured, passed: 0, failed: 1, skipped: 0 };
  const said = JSON.parse(readFileSync(report, 'utf8')) as JestReport;
  const failed = said.numFailedTests + said.numRuntimeErrorTestSuites;
  return {
    ...measured,
    passed: said.numPassedTests,
    failed: failed === 0 && status !== 0 ? 1 : failed,
    skipped: said.numPendingTests,
  };
}

/** 0 of a process that has ended. Source: VmHWM of proc(5). */
function peakMibOf(pid: number | undefined): number {
  try {
    return (
      Number(/^VmHWM:\s*(\d+) kB/m.exec(readFileSync(`/proc/${pid ?? 0}/status`, 'latin1'))?.[1] ?? 0) / 1024
    );
  } catch {
    return 0;
  }
}

/** A file leaves half of two processors idle, so two run at a time. Whichever lane is free takes the next one. */
async function runAll(jobs: readonly Job[], reports: string): Promise<readonly Outcome[]> {
  const outcomes: Outcome[] = [];
  const first = jobs.filter(({ isFirst }) => isFirst);
  const others = jobs.filter(({ isFirst }) => !isFirst);
  const lane = async (next: () => Job | undefined, isShown: boolean): Promise<void> => {
    for (let job = next(); job !== undefined; job = next()) outcomes.push(await run(job, reports, isShown));
  };
  await Promise.all([lane(() => others.shift(), true), lane(() => first.shift() ?? others.pop(), false)]);
  return outcomes.sort((a, b) => a.name.localeCompare(b.name));
}

function summary(outcomes: readonly Outcome[]): { readonly text: string; readonly isGood: boolean } {
  const sum = (of: (outcome: Outcome) => number): number =>
    outcomes.reduce((total, outcome) => total + of(outcome), 0);
  const [passed, failed, skipped] = [
    sum((outcome) => outcome.passed),
    sum((outcome) => outcome.failed),
    sum((outcome) => outcome.skipped),
  ];
  const lines = outcomes.map((outcome) => {
    const left = outcome.skipped > 0 ? `, ${outcome.skipped} skipped` : '';
    const seconds = outcome.seconds.toFixed(0).padStart(5);
    const peak = outcome.peakMib.toFixed(0).padStart(5);
    return `${seconds} s ${peak} MiB  ${outcome.name}: ${outcome.passed} passed, ${outcome.failed} failed${left}`;
  });
  if (skipped > 0) lines.push(`${skipped} skipped`);
  lines.push(`${passed} passed, ${failed} failed`);
  return { text: lines.join('\n'), isGood: failed === 0 && passed > 0 };
}

const [ready = '', ...words] = process.argv.slice(2);
const reports = mkdtempSync(join(tmpdir(), 'reports-'));
try {
  const outcomes: Outcome[] = [];
  for (const word of words) if (word.startsWith(FAST)) outcomes.push(await run(fastJob(word), reports, true));
  const jobs = jobsOf(words.filter((word) => !word.startsWith(FAST)));
  while (jobs.length > 0 && !existsSync(ready)) await sleep(READY_POLL_MS);
  outcomes.push(...(await runAll(jobs, reports)));
  const { text, isGood } = summary(outcomes);
  process.stdout.write(`\n${text}\n`);
  process.exitCode = isGood ? 0 : 1;
} finally {
  rmSync(reports, { recursive: true, force: true });
}
