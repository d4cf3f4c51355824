import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

import { describe, expect, it } from '@jest/globals';

import { EXIT, exitCodeOf } from '../../src/cli/exit-codes.js';
import { secondsForTimer } from '../../src/cli/parse.js';
import { snakeCase } from '../../src/cli/reporter.js';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const COMMAND = new URL('../../src/cli/command.js', import.meta.url).href;

/** Runs Node.js with one of its outputs closed by the reader before anything is written. */
async function withClosed(
  output: 'stdout' | 'stderr',
  args: readonly string[],
): Promise<{ exitCode: number | null; stderr: string }> {
  const child = spawn(process.execPath, args, { env: { ...process.env, NODE_OPTIONS: '' } });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
  child[output].destroy();
  const [exitCode] = (await once(child, 'close')) as [number | null];
  return { exitCode, stderr };
}

describe('an output that nobody reads any more', () => {
  it('is no failure of the help', async () => {
    expect(await withClosed('stdout', [MAIN, '--help'])).toEqual({ exitCode: 0, stderr: '' });
  });

  it.each([
    ['stdout', true],
    ['stderr', false],
  ] as const)('ends a command as a signal does (%s)', async (output, json) => {
    const script = `
      import { run } from ${JSON.stringify(COMMAND)};
      import { setTimeout as sleep } from 'node:timers/promises';
      await run({ json: ${json} }, async ({ reporter, signal }) => {
        for (let i = 0; i < 1000; i++) {
          signal.throwIfAborted();
          reporter.warning('still at it');
          await sleep(10);
        }
      });`;
    const { exitCode } = await withClosed(output, ['--input-type=module', '-e', script]);
    expect(exitCode).toBe(EXIT.interrupted);
  });
});

describe('the time between checkpoints', () => {
  it.each([
    ['0.5', 0.5],
    ['60', 60],
    ['2147483', 2_147_483],
  ])('takes %s s', (text, seconds) => {
    expect(secondsForTimer(text)).toBe(seconds);
  });

  it.each(['0', '-1', 'x', '', 'Infinity', '1e9', '2147484'])(
    'refuses "%s", which no timer waits for',
    (text) => {
      expect(() => secondsForTimer(text)).toThrow(
        expect.objectContaining({ code: 'commander.invalidArgument' }),
      );
    },
  );
});

describe('JSON output', () => {
  it('has snake_case names, and data as it is', () => {
    expect(
      snakeCase({
        pauseMs: 1,
        stats: { dirtyPages: 2 },
        disks: [{ diskId: 'a' }],
        machine: { env: { HOME: '/x', myVar: 1 } },
      }),
    ).toEqual({
      pause_ms: 1,
      stats: { dirty_pages: 2 },
      disks: [{ disk_id: 'a' }],
      machine: { env: { HOME: '/x', myVar: 1 } },
    });
  });
});

describe('exit codes', () => {
  it.each(['STORAGE_FULL', 'STORAGE_READ_ONLY', 'STORAGE_IO'] as const)('%s is the storage', (code) => {
    expect(exitCodeOf(code)).toBe(25);
  });

  it.each([
    ['VM_LOCKED', 11],
    ['VM_NOT_RESUMED', 20],
    ['VM_STATE', 22],
    ['INTERRUPTED', 130],
    ['UNEXPECTED', 1],
  ] as const)('%s is %i', (code, exitCode) => {
    expect(exitCodeOf(code)).toBe(exitCode);
  });
});
