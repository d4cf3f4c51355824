/**
 * Host side of the Xen lab: packs the built Cairn and its run-time packages, boots dom0 with them, and brings results and logs back.
 *
 *     node dist/test/lab/xen/run-lab.js [short | NAME...] [--out DIR]
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Of the source tree, seen from dist/test/lab/xen. */
const ROOT = fileURLToPath(new URL('../../../../', import.meta.url));
const SETUP = join(ROOT, 'test/lab/xen/setup');
/** Of the contract suites. */
const ASSERTIONS = 'expect';
/** Of ensure-xen.sh: the packages cannot be had. */
const CANNOT_BE_HAD = 3;
/** Of run-xen.sh: the emulation has lost its machine, dom0 and all; nothing is known about the program. */
const STANDS_STILL = 125;
const ATTEMPTS = 3;

export interface ScenarioResult {
  readonly name: string;
  readonly ok: boolean;
  readonly error?: string;
  readonly figures?: Readonly<Record<string, unknown>>;
  readonly seconds: number;
}

export interface LabRun {
  readonly results: readonly ScenarioResult[];
  /** Folder with results.jsonl, console.log and the guests' consoles. */
  readonly outDir: string;
  readonly exitCode: number;
}

/** Empty when the lab is ready, else why it cannot be built on this host. */
export function ensureXenLab(): string {
  const made = spawnSync('bash', [join(SETUP, 'ensure-xen.sh')], { encoding: 'utf8' });
  if (made.status === 0) return '';
  if (made.status === CANNOT_BE_HAD) return made.stderr.trim();
  throw new Error(`building the Xen lab failed: ${made.stderr}`);
}

export function runXenLab(
  args: readonly string[],
  options: { readonly outDir: string; readonly limitS: number },
): LabRun {
  const { outDir, limitS } = options;
  mkdirSync(outDir, { recursive: true });
  const work = mkdtempSync(join(tmpdir(), 'cairn-xen-lab-'));
  try {
    const payload = join(work, 'payload.tar');
    pack(payload, work, args);
    for (let attempt = 1; ; attempt++) {
      const run = spawnSync('bash', [join(SETUP, 'run-xen.sh'), payload, outDir, String(limitS)], {
        encoding: 'utf8',
      });
      if (run.status !== STANDS_STILL || attempt === ATTEMPTS)
        return { results: readResults(join(outDir, 'results.jsonl')), outDir, exitCode: run.status ?? -1 };
      const end = readFileSync(join(outDir, 'console.log'), 'latin1').slice(-1000);
      process.stderr.write(`  the emulated Xen begins anew after this: ${end}\n`);
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function pack(payload: string, work: string, args: readonly string[]): void {
  const suite = 'dist/test/lab/xen/dom0/suite.js';
  writeFileSync(
    join(work, 'run.sh'),
    `exec node --no-warnings ${suite} ${args.map((arg) => `'${arg.replaceAll("'", '')}'`).join(' ')}\n`,
  );
  const packages = runTimePackages().map((name) => `node_modules/${name}`);
  const tests = ['lab', 'contract', 'support'].map((tier) => `dist/test/${tier}`);
  const trees = ['bundle', 'dist/src', 'dist/adapters', ...tests, 'package.json', ...packages];
  execFileSync('tar', [
    '-cf',
    payload,
    '--exclude=*.map',
    '--exclude=*.d.ts',
    '-C',
    ROOT,
    ...trees,
    '-C',
    work,
    'run.sh',
  ]);
}

/** The packages that program and suites need when they run, with what they need in turn, as far as they are installed. */
function runTimePackages(): readonly string[] {
  const found = new Set<string>();
  const visit = (folder: string): void => {
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
      readFileSync(join(folder, 'package.json'), 'utf8'),
    ) as Readonly<Record<string, Readonly<Record<string, string>> | undefined>>;
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies })) {
      const there = join(ROOT, 'node_modules', name);
      if (found.has(name) || !existsSync(there)) continue;
      found.add(name);
      visit(there);
    }
  };
  visit(ROOT);
  found.add(ASSERTIONS);
  visit(join(ROOT, 'node_modules', ASSERTIONS));
  return [...found];
}

function readResults(path: string): readonly ScenarioResult[] {
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as ScenarioResult);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const args = process.argv.slice(2);
  const at = args.indexOf('--out');
  const outDir = at >= 0 ? args.splice(at, 2)[1]! : mkdtempSync(join(tmpdir(), 'cairn-xen-results-'));
  const problem = ensureXenLab();
  if (problem !== '') throw new Error(problem);
  const { results, exitCode } = runXenLab(args, { outDir, limitS: 3600 });
  for (const { name, ok, error, seconds } of results) {
    process.stdout.write(
      `${ok ? 'ok  ' : 'FAIL'} ${name} (${seconds.toFixed(0)} s)${error === undefined ? '' : `\n${error}`}\n`,
    );
  }
  process.stdout.write(`results and logs: ${outDir}\n`);
  process.exitCode = results.length > 0 && exitCode === 0 && results.every(({ ok }) => ok) ? 0 : 1;
}
