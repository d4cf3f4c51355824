/** System calls of a real Cairn process that fail, by a library that is preloaded: see call-faults.c. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { CairnProcess, type CliResult } from './cairn-cli.js';
import { SOURCE_ROOT, whyNoPackages } from './lab-files.js';

/** `create` is an open that may make the file, `sync` an fsync or fdatasync. */
export type FaultyCall = 'link' | 'rename' | 'unlink' | 'create' | 'open' | 'sync';

export interface CallFault {
  readonly call: FaultyCall;
  /** From 1, among the process's calls of this name on files of the repository. */
  readonly nth: number;
  readonly errno: keyof typeof constants.errno;
  /** It is carried out, and says that it failed. */
  readonly isDone: boolean;
  /** No call after it is carried out: nobody can be asked what became of it. */
  readonly isOutage: boolean;
}

export interface Watched extends CliResult {
  /** Names of the calls that were seen, in their order. */
  readonly calls: readonly FaultyCall[];
}

/** Far more than any command on a small repository needs. */
const TIMEOUT_MS = 90_000;

/** Empty when the library can be made here; else why not. */
export function whyNoCallFaults(): string {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the calls are those of Linux on x86-64';
  return whyNoPackages('tcc', 'libc6-dev');
}

/** @param path of the library to be made */
export function makeCallFaults(path: string): void {
  const source = join(SOURCE_ROOT, 'test/lab/support/call-faults.c');
  const { status, stderr } = spawnSync('tcc', ['-shared', '-o', path, source], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`tcc: ${stderr}`);
}

/**
 * Runs a command to its end, whatever the end is.
 * @param dir folder of this run alone, for its runtime folder and the list of calls
 */
export async function runFaulty(
  library: string,
  args: readonly string[],
  { dir, repo, fault }: { readonly dir: string; readonly repo: string; readonly fault?: CallFault },
): Promise<Watched> {
  const log = join(dir, 'calls.log');
  const cairn = new CairnProcess(args, {
    dir,
    env: {
      LD_PRELOAD: library,
      // Else libuv may hand calls to the kernel where no library sees them.
      UV_USE_IO_URING: '0',
      TMPDIR: dir,
      CALL_FAULT_BELOW: repo,
      CALL_FAULT_LOG: log,
      CALL_FAULT_NAME: fault?.call ?? '',
      CALL_FAULT_NTH: `${fault?.nth ?? 0}`,
      CALL_FAULT_ERRNO: `${constants.errno[fault?.errno ?? 'EIO']}`,
      CALL_FAULT_DONE: fault?.isDone === true ? '1' : '0',
      CALL_FAULT_OUTAGE: fault?.isOutage === true ? '1' : '0',
    },
  });
  const timer = setTimeout(() => cairn.child.kill('SIGKILL'), TIMEOUT_MS);
  const result = await cairn.ended;
  clearTimeout(timer);
  const lines = existsSync(log) ? readFileSync(log, 'latin1').split('\n').slice(0, -1) : [];
  return { ...result, calls: lines.map((line) => line.split(' ')[0] as FaultyCall) };
}
