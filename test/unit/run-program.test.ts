import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';

import { failureOf, runProgram, startProgram } from '../../src/host/run-program.js';
import { applySnapshot, imageInfo } from '../../adapters/disks/qcow2/qemu-img.js';
import { compressInto } from '../../adapters/libvirt/restore/compression.js';
import { makeFifo } from '../../adapters/libvirt/restore/fifo.js';
import { runXl, runXenTool } from '../../adapters/xen/domain/xl.js';

const LIMIT_MS = 10_000;
const shell = (script: string): readonly string[] => ['-c', script];

let dir = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-programs-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

describe('a program', () => {
  it('gives what it wrote', async () => {
    expect(await runProgram('cat', [], { limitMs: LIMIT_MS, input: 'pages' })).toEqual({
      kind: 'done',
      stdout: 'pages',
    });
  });

  it('that reads none of its input is free to', async () => {
    const input = 'x'.repeat(4 << 20);
    expect(await runProgram('true', [], { limitMs: LIMIT_MS, input })).toMatchObject({ kind: 'done' });
  });

  it('speaks English to programs', async () => {
    const { LC_ALL, LANG } = process.env;
    Object.assign(process.env, { LC_ALL: 'de_DE.UTF-8', LANG: 'de_DE.UTF-8' });
    try {
      const result = await runProgram('sh', shell('echo "$LC_ALL"'), { limitMs: LIMIT_MS });
      expect(result).toEqual({ kind: 'done', stdout: 'C\n' });
    } finally {
      restore('LC_ALL', LC_ALL);
      restore('LANG', LANG);
    }
  });

  it('fails with what it said, in one line', async () => {
    const result = await runProgram('sh', shell('echo no >&2; echo why >&2; exit 5'), { limitMs: LIMIT_MS });
    expect(result).toEqual({ kind: 'failed', text: 'no; why' });
    expect(failureOf('sh', result)).toBe('no; why');
  });

  it.each([
    ['exit 3', 'it ended with status 3'],
    ['kill -9 $$', 'it ended with SIGKILL'],
  ])('that ends by `%s` without a word: %s', async (script, text) => {
    expect(await runProgram('sh', shell(script), { limitMs: LIMIT_MS })).toEqual({ kind: 'failed', text });
  });

  it('that is not there is named with its package', async () => {
    const result = await runProgram('no-such-program', [], { limitMs: LIMIT_MS });
    expect(result).toEqual({ kind: 'missing' });
    expect(failureOf('no-such-program', result, 'tools')).toBe(
      'no-such-program is not installed (package tools)',
    );
  });

  it('that hangs is ended', async () => {
    const pidFile = join(dir, 'pid');
    const script = `echo $$ > ${pidFile}; exec sleep 1000`;
    const result = await runProgram('sh', shell(script), { limitMs: 500 });
    expect(result).toEqual({ kind: 'late' });
    expect(failureOf('sh', result)).toBe('sh did not end in time');
    await expectEnd(pidFile);
  });

  it('that hangs and ignores SIGTERM is ended all the same', async () => {
    const script = 'trap "" TERM; while :; do sleep 0.05; done';
    expect(await runProgram('sh', shell(script), { limitMs: 20 })).toEqual({ kind: 'late' });
  });

  it('whose child holds its output does not keep the caller waiting', async () => {
    const pidFile = join(dir, 'pid');
    const script = `sleep 1000 & echo $! > ${pidFile}; exit 0`;
    expect(await runProgram('sh', shell(script), { limitMs: 500 })).toEqual({ kind: 'late' });
    process.kill(Number(readFileSync(pidFile, 'latin1')));
  });

  it('of the shell ends with all that it started', async () => {
    const pidFile = join(dir, 'pid');
    const script = `sleep 1000 & echo $! > ${pidFile}; wait`;
    const result = await runProgram('sh', shell(script), { limitMs: 500, isShellCommand: true });
    expect(result).toEqual({ kind: 'late' });
    await expectEnd(pidFile);
  });

  it('ends when the caller no longer wants it', async () => {
    const control = new AbortController();
    const result = runProgram('sleep', ['1000'], { limitMs: LIMIT_MS, signal: control.signal });
    await sleep(20);
    control.abort();
    expect(await result).toEqual({ kind: 'interrupted' });
    const late = await runProgram('sleep', ['1000'], { limitMs: LIMIT_MS, signal: control.signal });
    expect(late).toEqual({ kind: 'interrupted' });
  });

  it('that writes too much is ended', async () => {
    const result = await runProgram('yes', [], { limitMs: LIMIT_MS, maxOutputBytes: 1000 });
    expect(result).toEqual({ kind: 'failed', text: 'it wrote more than 1000 bytes, and was ended' });
  });

  it('that complains too much is heard at first, and not held up', async () => {
    const script = 'echo first >&2; head -c 10000000 /dev/zero >&2; exit 1';
    const result = await runProgram('sh', shell(script), { limitMs: LIMIT_MS });
    expect(result.kind).toBe('failed');
    expect(failureOf('sh', result)).toMatch(/^first; /);
    expect(failureOf('sh', result).length).toBeLessThan(128 << 10);
  });
});

describe('a program that is fed', () => {
  it('may run for longer than its limit as long as it has nothing to do', async () => {
    const program = await startProgram('cat', [], { limitMs: 100 });
    const written = text(program.stdout);
    await sleep(400);
    program.stdin.end('late, and well');
    expect(await written).toBe('late, and well');
    expect(await program.ended).toMatchObject({ kind: 'done' });
  });

  it('is ended when it does not take what it is given', async () => {
    const program = await startProgram('sh', shell('exec sleep 1000'), { limitMs: 200, stdout: 'ignore' });
    program.stdin.write(Buffer.alloc(1 << 20));
    expect(await program.ended).toEqual({ kind: 'late' });
  });

  it('is ended when it does not end after its input has', async () => {
    const program = await startProgram('sh', shell('exec sleep 1000'), { limitMs: 200, stdout: 'ignore' });
    program.stdin.end();
    expect(await program.ended).toEqual({ kind: 'late' });
  });

  it('is not blamed for a reader that stands still', async () => {
    const program = await startProgram('sh', shell('head -c 1000000 /dev/zero'), { limitMs: 200 });
    program.stdin.end();
    await sleep(600);
    let bytes = 0;
    for await (const chunk of program.stdout) bytes += (chunk as Buffer).length;
    expect(bytes).toBe(1_000_000);
    expect(await program.ended).toMatchObject({ kind: 'done' });
  });
});

/** Programs of these names that stand first in PATH. */
describe('the programs of the adapters', () => {
  const { PATH } = process.env;
  beforeEach(async () => {
    process.env.PATH = `${dir}:${PATH ?? ''}`;
    // Its modules are loaded before the clock is held.
    await runProgram('true', [], { limitMs: LIMIT_MS });
  });
  afterEach(() => {
    jest.useRealTimers();
    restore('PATH', PATH);
  });

  function program(name: string, script: string): void {
    const path = join(dir, name);
    writeFileSync(path, `#!/bin/sh\n${script}\n`);
    chmodSync(path, 0o755);
  }

  /** The clock of `setTimeout` and `setInterval` runs on once the program has begun to hang. */
  async function pastLimit<Value>(begin: () => Promise<Value>, limitMs: number): Promise<unknown> {
    const started = join(dir, 'started');
    rmSync(started, { force: true });
    jest.useFakeTimers({ doNotFake: ['nextTick', 'setImmediate', 'queueMicrotask', 'performance'] });
    const outcome = begin().then(
      (value: unknown) => value,
      (error: unknown) => error,
    );
    while (!existsSync(started)) await new Promise((resolve) => setImmediate(resolve));
    await jest.advanceTimersByTimeAsync(limitMs - 1000);
    expect(existsSync(join(dir, 'ended'))).toBe(false);
    await jest.advanceTimersByTimeAsync(limitMs);
    jest.useRealTimers();
    return outcome;
  }

  const HANG = (): string => `echo > ${dir}/started; exec sleep 1000`;

  it.each<[string, string, number, () => Promise<unknown>, object]>([
    ['qemu-img info', 'qemu-img', 60_000, () => imageInfo('/a'), { code: 'RESTORE_FAILED' }],
    ['qemu-img snapshot', 'qemu-img', 1_800_000, () => applySnapshot('/a', 's'), { code: 'RESTORE_FAILED' }],
    ['xl', 'xl', 30_000, () => runXl(['info']), { code: 'FFI_FAILED' }],
    ['xenstore-read', 'xenstore-read', 30_000, () => runXenTool('xenstore-read', ['/a'], 'p'), {}],
    ['mkfifo', 'mkfifo', 10_000, () => makeFifo(join(dir, 'f')), { code: 'RESTORE_FAILED' }],
  ])('%s that hangs is ended', async (_, name, limitMs, begin, error) => {
    program(name, HANG());
    const outcome = await pastLimit(begin, limitMs);
    expect(outcome).toMatchObject({
      ...error,
      message: expect.stringContaining(`${name} did not end in time`),
    });
    expect(outcome).toHaveProperty('hint', expect.any(String));
  });

  it('a compressor that hangs is ended', async () => {
    program('gzip', HANG());
    const { PassThrough } = await import('node:stream');
    const fill = (): Promise<void> => Promise.resolve();
    const begin = (): Promise<number> => compressInto(new PassThrough(), { id: 1, program: 'gzip' }, fill);
    expect(await pastLimit(begin, 400_000)).toMatchObject({
      code: 'WORKER_FAILED',
      message: expect.stringContaining('gzip did not end in time'),
    });
  });

  it('say in English that an image is locked, whatever the language of the operator', async () => {
    const inEnglish = 'qemu-img: Could not open: Failed to get \\"write\\" lock';
    const inGerman = 'qemu-img: Konnte die Sperre nicht bekommen';
    program('qemu-img', `[ "$LC_ALL" = C ] && echo "${inEnglish}" >&2 || echo "${inGerman}" >&2; exit 1`);
    const { LC_ALL } = process.env;
    process.env.LC_ALL = 'de_DE.UTF-8';
    try {
      await expect(applySnapshot('/a', 's')).rejects.toMatchObject({ code: 'RESTORE_TARGET_BUSY' });
    } finally {
      restore('LC_ALL', LC_ALL);
    }
  });

  it('are named with their package when they are not there', async () => {
    process.env.PATH = dir;
    await expect(imageInfo('/a')).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining('qemu-img is not installed (package qemu-utils)'),
      hint: expect.stringContaining('qemu-utils'),
    });
    await expect(runXl(['info'])).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
      hint: expect.stringContaining('xen-utils'),
    });
  });
});

function restore(name: string, value: string | undefined): void {
  if (value === undefined) Reflect.deleteProperty(process.env, name);
  else process.env[name] = value;
}

/** The signal has been sent; the kernel may still be at it. */
async function expectEnd(pidFile: string): Promise<void> {
  const pid = readFileSync(pidFile, 'latin1').trim();
  for (let tries = 0; tries < 500 && isAlive(pid); tries++) await sleep(10);
  expect(isAlive(pid)).toBe(false);
}

/** A process that nobody waits for stays as a zombie. */
function isAlive(pid: string): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}
