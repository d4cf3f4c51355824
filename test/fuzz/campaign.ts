/**
 * Runs a target in processes of its own and looks after them: one that hangs, grows or dies has met an input that is a
 * finding, and another goes on behind that input.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { keepInput } from './corpus.js';
import type { RunMessage, RunSettings } from './run-inputs.js';

const PROGRAM = fileURLToPath(new URL('./run-inputs.js', import.meta.url));
/** The heap of JavaScript: an input that fills it has the process killed, and is found so. */
const HEAP_MIB = 256;
const MAX_RESIDENT_BYTES = 2 ** 30;
const WATCH_MS = 200;
/** Runs take milliseconds. What takes longer than this on a busy machine does not end. */
const STALLED_MS = 60_000;
/** A target that keeps killing its process has been understood by then. */
const MAX_DEATHS = 20;

export interface CampaignOptions {
  readonly target: string;
  readonly seed: number;
  readonly count: number;
  /** Default: until `count` is reached. */
  readonly limitMs?: number;
  readonly keepIn?: string;
  readonly growIn?: string;
  readonly onProblem?: (problem: Problem) => void;
}

export interface Problem {
  readonly problem: string;
  /** Which input: the name of a kept one, or its number. */
  readonly name: string;
  /** Where it was kept; empty when nowhere. */
  readonly path: string;
}

export interface CampaignResult {
  readonly executions: number;
  /** Inputs that ended in different ways. */
  readonly kinds: number;
  readonly problems: readonly Problem[];
}

export async function runTarget(options: CampaignOptions): Promise<CampaignResult> {
  const { target, seed, count, limitMs, keepIn = '', growIn = '' } = options;
  const workDir = mkdtempSync(join(tmpdir(), 'cairn-fuzz-'));
  const problems: Problem[] = [];
  const onProblem = (problem: Problem): void => {
    problems.push(problem);
    options.onProblem?.(problem);
  };
  const endsAtMs = limitMs === undefined ? 0 : Date.now() + limitMs;
  let executions = 0;
  let kinds = 0;
  let first = 0;
  try {
    for (let deaths = 0; deaths < MAX_DEATHS && first < count; deaths++) {
      const own = join(workDir, `process-${deaths}`);
      mkdirSync(own);
      const currentPath = join(workDir, 'current');
      const settings = { target, seed, first, count: count - first, endsAtMs, workDir: own, currentPath };
      const ended = await runOnce({ ...settings, keepIn, growIn }, onProblem);
      executions += ended.executions;
      kinds = Math.max(kinds, ended.pool);
      if (ended.problem === undefined) break;
      const input = new Uint8Array(readFileSync(currentPath));
      const path = keepIn === '' ? '' : keepInput(keepIn, 'killed', input);
      onProblem({ problem: ended.problem, name: `input ${ended.at} or one soon behind it`, path });
      first = ended.at + 1;
      if (endsAtMs !== 0 && Date.now() > endsAtMs) break;
    }
    return { executions, kinds, problems };
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
}

interface Ended {
  readonly executions: number;
  readonly pool: number;
  /** Number of the last input that is known of. */
  readonly at: number;
  /** Undefined when the process came to its end. */
  readonly problem: string | undefined;
}

async function runOnce(settings: RunSettings, onProblem: (problem: Problem) => void): Promise<Ended> {
  const child = spawn(
    process.execPath,
    [`--max-old-space-size=${HEAP_MIB}`, '--no-warnings', PROGRAM, JSON.stringify(settings)],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, NODE_OPTIONS: '', TMPDIR: settings.workDir },
    },
  );
  const heard: { last: Exclude<RunMessage, { kind: 'problem' }>; at: number } = {
    last: { kind: 'progress', executions: 0, pool: 0, at: settings.first },
    at: Date.now(),
  };
  let stderr = '';
  let killed: string | undefined;
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr = `${stderr}${text}`.slice(-4000)));
  createInterface({ input: child.stdout }).on('line', (line) => {
    heard.at = Date.now();
    const message = JSON.parse(line) as RunMessage;
    if (message.kind === 'problem') onProblem(message);
    else heard.last = message;
  });
  const watch = setInterval(() => {
    const resident = residentBytesOf(child);
    if (Date.now() - heard.at > STALLED_MS) killed = 'it does not end';
    else if (resident > MAX_RESIDENT_BYTES) killed = `it takes ${resident >> 20} MiB of memory`;
    if (killed !== undefined) child.kill('SIGKILL');
  }, WATCH_MS);
  const status = await new Promise<string>((resolve, reject) => {
    child.once('error', reject).once('close', (code, signal) => resolve(signal ?? String(code)));
  }).finally(() => clearInterval(watch));
  if (heard.last.kind === 'end' && status === '0') return { ...heard.last, problem: undefined };
  return { ...heard.last, problem: killed ?? `the process ended with ${status}: ${reasonIn(stderr)}` };
}

/** What V8 says of a full heap stands above its stack. */
function reasonIn(stderr: string): string {
  const lines = stderr.split('\n').filter((line) => line.trim() !== '');
  return lines.find((line) => /FATAL|Error/.test(line)) ?? lines.at(-1) ?? '';
}

function residentBytesOf(child: ChildProcess): number {
  try {
    const status = readFileSync(`/proc/${child.pid ?? 0}/status`, 'latin1');
    return Number(/^VmRSS:\s*(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
