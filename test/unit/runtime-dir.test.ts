import { chmod, mkdir, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { defaultRuntimeDir, openRuntimeDir } from '../../src/host/runtime-dir.js';

describe('the default runtime folder', () => {
  const { getuid } = process;
  afterEach(() => {
    process.getuid = getuid!;
  });

  it.each([
    [{ CAIRN_RUNTIME_DIR: '/srv/run', XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/srv/run'],
    [{ XDG_RUNTIME_DIR: '/run/user/0' }, 0, '/run/cairn'],
    [{ XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/run/user/7/cairn'],
    [{ CAIRN_RUNTIME_DIR: '', XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/run/user/7/cairn'],
  ])('with %j for user %i is %s', (env, uid, expected) => {
    process.getuid = () => uid;
    expect(defaultRuntimeDir(env)).toBe(expected);
  });

  it.each([{}, { XDG_RUNTIME_DIR: '' }])('with %j for a user is none: nothing below /tmp is used', (env) => {
    process.getuid = () => 7;
    expect(() => defaultRuntimeDir(env)).toThrow(
      expect.objectContaining({
        code: 'VM_PERMISSION',
        hint: expect.stringContaining('CAIRN_RUNTIME_DIR'),
      }),
    );
  });
});

describe('opening the runtime folder', () => {
  let dir = '';
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'cairn-runtime-'));
  });
  afterEach(() => rm(dir, { recursive: true }));

  it('creates it for its owner only, and takes it again', async () => {
    const path = join(dir, 'a', 'b');
    expect(await openRuntimeDir(path)).toBe(path);
    expect((await stat(path)).mode & 0o777).toBe(0o700);
    expect(await openRuntimeDir(path)).toBe(path);
  });

  it('refuses one that others may write to', async () => {
    await chmod(dir, 0o770);
    await expect(openRuntimeDir(dir)).rejects.toMatchObject({ code: 'VM_PERMISSION' });
  });

  it('refuses a symbolic link, which somebody may point elsewhere', async () => {
    await mkdir(join(dir, 'target'), { mode: 0o700 });
    await symlink(join(dir, 'target'), join(dir, 'link'));
    await expect(openRuntimeDir(join(dir, 'link'))).rejects.toMatchObject({ code: 'VM_PERMISSION' });
  });

  it('refuses a file', async () => {
    await writeFile(join(dir, 'file'), '');
    await expect(openRuntimeDir(join(dir, 'file'))).rejects.toMatchObject({ code: 'VM_PERMISSION' });
  });
});
