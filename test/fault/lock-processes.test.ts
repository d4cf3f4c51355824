/** Locks of chains between real processes. */

import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { Repository } from '../../src/repository/repository.js';
import { FileBackend } from '../../src/storage/file.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import { IDENTITY } from '../unit/repository-model.js';

const urlOf = (path: string): string => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);

let dir = '';
const children: ChildProcess[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-locks-'));
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }
  rmSync(dir, { recursive: true });
});

/** Runs a script until it says something. */
async function run(script: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    env: { PATH: process.env.PATH },
    cwd: '/',
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.push(child);
  await once(child.stdout, 'data');
  return child;
}

function cairn(...args: readonly string[]): {
  readonly status: number | null;
  readonly lines: readonly object[];
} {
  const { status, stdout } = spawnSync(
    process.execPath,
    [CAIRN_MAIN, ...args, '--repo', join(dir, 'repo'), '--json'],
    {
      encoding: 'utf8',
      env: { ...process.env, NODE_OPTIONS: '' },
    },
  );
  const lines = stdout.split('\n').filter((line) => line !== '');
  return { status, lines: lines.map((line) => JSON.parse(line) as object) };
}

describe('the lock of a chain', () => {
  const holding = (): string => `
    import { Repository } from ${urlOf('repository/repository.js')};
    import { FileBackend } from ${urlOf('storage/file.js')};
    const repository = await Repository.open(new FileBackend(${JSON.stringify(join(dir, 'repo'))}));
    const chain = await repository.openChainWriter('web1', ${JSON.stringify(IDENTITY)});
    console.log('held');
    process.stdin.once('data', () => chain.mustBeHeld().then(() => console.log('still'), ({ code }) => console.log(code)));`;

  it('that was removed is missed although the file system has it in a cache, as NFS does', async () => {
    await Repository.init(new FileBackend(join(dir, 'repo')));
    const child = await run(`
      import fs from 'node:fs/promises';
      import { syncBuiltinESMExports } from 'node:module';
      const known = new Map();
      for (const name of ['stat', 'lstat', 'access']) {
        const real = fs[name];
        fs[name] = async (path, ...more) => {
          const found = known.get(name + path) ?? (await real(path, ...more));
          known.set(name + path, found);
          return found;
        };
      }
      syncBuiltinESMExports();
      const { Repository } = await import(${urlOf('repository/repository.js')});
      const { FileBackend } = await import(${urlOf('storage/file.js')});
      const repository = await Repository.open(new FileBackend(${JSON.stringify(join(dir, 'repo'))}));
      const chain = await repository.openChainWriter('web1', ${JSON.stringify(IDENTITY)});
      await chain.mustBeHeld();
      console.log('held');
      process.stdin.once('data', () => chain.mustBeHeld().then(() => console.log('still'), ({ code }) => console.log(code)));`);
    for (const lock of readdirSync(join(dir, 'repo/vms/web1/locks')))
      rmSync(join(dir, 'repo/vms/web1/locks', lock));
    child.stdin!.write('\n');
    const [said] = (await once(child.stdout!, 'data')) as [Buffer];
    expect(said.toString().trim()).toBe('REPO_LOCKED');
  });

  it('is not taken from a living process but by force, which that process finds out', async () => {
    await Repository.init(new FileBackend(join(dir, 'repo')));
    const child = await run(holding());
    const refused = cairn('unlock', 'web1');
    expect(refused.status).toBe(11);
    expect(refused.lines).toEqual([
      expect.objectContaining({
        code: 'REPO_LOCKED',
        message: expect.stringMatching(`process ${child.pid!} on .* \\(.*node.*\\), since 2.*, is running`),
        hint: expect.stringContaining('--force'),
      }),
    ]);
    expect(readdirSync(join(dir, 'repo/vms/web1/locks'))).toHaveLength(1);
    expect(cairn('unlock', 'web1', '--force')).toMatchObject({
      status: 0,
      lines: [{ removed: [expect.any(String)] }],
    });
    child.stdin!.write('\n');
    const [said] = (await once(child.stdout!, 'data')) as [Buffer];
    expect(said.toString().trim()).toBe('REPO_LOCKED');
  });

  it('of a process that was killed is taken over at once, and unlocked without force', async () => {
    const repository = await Repository.init(new FileBackend(join(dir, 'repo')));
    for (const next of ['writer', 'unlock']) {
      const child = await run(holding());
      child.kill('SIGKILL');
      await once(child, 'exit');
      if (next === 'writer') await (await repository.openChainWriter('web1', IDENTITY)).close();
      else expect(cairn('unlock', 'web1').status).toBe(0);
      expect(readdirSync(join(dir, 'repo/vms/web1/locks'))).toEqual([]);
    }
  });
});
