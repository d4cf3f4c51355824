import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { describe, expect, it } from '@jest/globals';

import { EXIT, exitCodeOf } from '../../src/cli/exit-codes.js';
import { duration, secondsForTimer } from '../../src/cli/parse.js';
import { snakeCase } from '../../src/cli/reporter.js';
import { Repository } from '../../src/repository/repository.js';
import { openBackend } from '../../src/storage/open.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';

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
    expect(await withClosed('stdout', [CAIRN_MAIN, '--help'])).toEqual({ exitCode: 0, stderr: '' });
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

describe('an output without room', () => {
  it.each([
    ['the help', ['--help']],
    ['a result', ['list', '--repo']],
  ])('is an error of %s, by a code', async (_, args) => {
    const dir = mkdtempSync(join(tmpdir(), 'cairn-cli-test-'));
    const full = openSync('/dev/full', 'w');
    try {
      await (await Repository.init(openBackend(join(dir, 'repo')))).backend.close();
      const { status, stderr } = spawnSync(
        process.execPath,
        [CAIRN_MAIN, ...args, ...(args.length > 1 ? [join(dir, 'repo')] : [])],
        { stdio: ['ignore', full, 'pipe'], encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } },
      );
      expect(status).toBe(EXIT.failure);
      expect(stderr).toMatch(/^cairn: the output cannot be written: ENOSPC.* \[OUTPUT_FAILED\]$/m);
    } finally {
      closeSync(full);
      rmSync(dir, { recursive: true, force: true });
    }
  });
});

describe('a reader that has seen enough of a result', () => {
  it('ends the command quietly, with the code that it has anyway', async () => {
    const script = `
      import { run } from ${JSON.stringify(COMMAND)};
      await run({}, async ({ reporter }) => {
        reporter.summary({}, 'a line\\n'.repeat(100000));
        return 3;
      });`;
    expect(await withClosed('stdout', ['--input-type=module', '-e', script])).toEqual({
      exitCode: 3,
      stderr: '',
    });
  });
});

describe('a signal', () => {
  it.each(['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const)(
    '(%s) ends a command after it has cleaned up',
    async (signal) => {
      const script = `
        import { run } from ${JSON.stringify(COMMAND)};
        import { setTimeout as sleep } from 'node:timers/promises';
        await run({}, async ({ signal }) => {
          try {
            process.stdout.write('begun');
            await sleep(600000, undefined, { signal });
          } finally {
            process.stdout.write(' cleaned up');
          }
        });`;
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
        env: { ...process.env, NODE_OPTIONS: '' },
      });
      let stdout = '';
      child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
        if (stdout === '') child.kill(signal);
        stdout += chunk;
      });
      const [exitCode] = (await once(child, 'close')) as [number | null];
      expect({ exitCode, stdout }).toEqual({ exitCode: EXIT.interrupted, stdout: 'begun cleaned up' });
    },
  );
});

describe('a length of time', () => {
  it.each([
    ['5', 5000],
    ['5s', 5000],
    ['1.5s', 1500],
    ['800ms', 800],
    ['2min', 120_000],
  ])('%s is %i ms', (text, ms) => {
    expect(duration(text)).toBe(ms);
  });

  it.each(['', '0', '0s', '-1s', '5h', 's', '1e3', 'Infinity', '99999999min'])('"%s" is none', (text) => {
    expect(() => duration(text)).toThrow(expect.objectContaining({ code: 'commander.invalidArgument' }));
  });
});

describe('cairn receive', () => {
  /** With a stream on stdin that is none of xl. */
  function received(repo: string) {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [CAIRN_MAIN, 'receive', '--repo', repo, '--json'],
      {
        input: 'SSH-2.0\n'.repeat(100),
        encoding: 'utf8',
        env: { ...process.env, NODE_OPTIONS: '' },
      },
    );
    return { status, stdout, error: JSON.parse(stderr) as unknown };
  }

  it('says to xl that it is ready, and everything else on stderr', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'cairn-cli-test-'));
    try {
      const repo = join(dir, 'repo');
      await (await Repository.init(openBackend(repo))).backend.close();
      expect(received(repo)).toMatchObject({
        status: 1,
        stdout: 'xl migration receiver ready, send binary domain data.\n',
        error: { message_type: 'error', code: 'STREAM_MALFORMED' },
      });
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });

  it('lets xl give up before the guest is suspended when there is no repository', () => {
    expect(received('/nonexistent/repo')).toMatchObject({
      status: EXIT.repositoryMissing,
      stdout: '',
      error: { code: 'REPO_NOT_FOUND' },
    });
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
    ['PAUSE_LIMIT', 27],
    ['INTERRUPTED', 130],
    ['OUTPUT_FAILED', 1],
    ['UNEXPECTED', 1],
  ] as const)('%s is %i', (code, exitCode) => {
    expect(exitCodeOf(code)).toBe(exitCode);
  });
});

describe('cairn init', () => {
  it('refuses a folder that holds files of others, and names them', () => {
    const dir = mkdtempSync(join(tmpdir(), 'cairn-init-cli-'));
    try {
      writeFileSync(join(dir, 'thesis.odt'), 'text');
      const init = (): { status: number | null; stdout: string } =>
        spawnSync(process.execPath, [CAIRN_MAIN, 'init', '--repo', dir, '--json'], {
          encoding: 'utf8',
          env: { ...process.env, NODE_OPTIONS: '' },
        });
      const refused = init();
      expect(refused.status).toBe(EXIT.refused);
      expect(JSON.parse(refused.stdout)).toMatchObject({
        code: 'REPO_NOT_EMPTY',
        message: expect.stringContaining('thesis.odt'),
        hint: expect.stringContaining('empty folder'),
      });
      expect(readdirSync(dir)).toEqual(['thesis.odt']);
      rmSync(join(dir, 'thesis.odt'));
      expect(init().status).toBe(0);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});
