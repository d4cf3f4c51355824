import { chmodSync, lchownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { FileTrust } from '../../src/host/file-trust.js';

const ME = process.getuid?.() ?? 0;
const SOMEBODY = 65_534;
const isRoot = ME === 0;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-trust-'));
  mkdirSync(join(dir, 'bin'), { mode: 0o755 });
  writeFileSync(join(dir, 'bin/qemu'), 'x', { mode: 0o755 });
});
afterEach(() => rmSync(dir, { recursive: true }));

const look = (path: string, trusted: readonly number[] = [ME]) =>
  new FileTrust(trusted).replaceable(join(dir, path));

describe('a file that others could have exchanged', () => {
  it('is none when it and every folder above are ours alone, also below /tmp', async () => {
    expect(await look('bin/qemu')).toBeUndefined();
  });

  it.each([
    ['the file by everybody', 'bin/qemu', 0o757, 'can be written to by everybody'],
    ['its folder by everybody', 'bin', 0o757, 'can be written to by everybody'],
  ])('is named when %s', async (_, changed, mode, why) => {
    chmodSync(join(dir, changed), mode);
    expect(await look('bin/qemu')).toEqual({ path: join(dir, changed), why });
  });

  it('is named when a group may write to the folder, unless that is the group of root', async () => {
    chmodSync(join(dir, 'bin'), 0o775);
    if (isRoot) {
      expect(await look('bin/qemu')).toBeUndefined();
      lchownSync(join(dir, 'bin'), ME, 100);
    }
    expect(await look('bin/qemu')).toEqual({
      path: join(dir, 'bin'),
      why: expect.stringContaining('can be written to by group'),
    });
  });

  it('is found behind a link, and by the folder that the link lies in', async () => {
    mkdirSync(join(dir, 'open'), { mode: 0o700 });
    writeFileSync(join(dir, 'open/qemu'), 'x', { mode: 0o755 });
    symlinkSync('../open/qemu', join(dir, 'bin/link'));
    expect(await look('bin/link')).toBeUndefined();
    chmodSync(join(dir, 'open'), 0o777);
    expect(await look('bin/link')).toMatchObject({ path: join(dir, 'open') });
    symlinkSync(join(dir, 'bin/qemu'), join(dir, 'open/back'));
    expect(await look('open/back')).toMatchObject({ path: join(dir, 'open') });
  });

  it('does not follow links in circles', async () => {
    symlinkSync('b', join(dir, 'bin/a'));
    symlinkSync('a', join(dir, 'bin/b'));
    expect(await look('bin/a')).toMatchObject({ why: 'is one of too many links' });
  });

  it('is none when nothing is there', async () => {
    expect(await look('bin/nothing')).toBeUndefined();
    expect(await look('bin/qemu/deeper')).toBeUndefined();
  });

  it('is found in a folder of libraries, also further down', async () => {
    mkdirSync(join(dir, 'bin/hwcaps'));
    writeFileSync(join(dir, 'bin/hwcaps/lib.so'), 'x');
    expect(await new FileTrust([ME]).replaceableIn(join(dir, 'bin'))).toBeUndefined();
    chmodSync(join(dir, 'bin/hwcaps/lib.so'), 0o666);
    expect(await new FileTrust([ME]).replaceableIn(join(dir, 'bin'))).toMatchObject({
      path: join(dir, 'bin/hwcaps/lib.so'),
    });
  });

  (isRoot ? it : it.skip)("is another user's, until that user is trusted", async () => {
    lchownSync(join(dir, 'bin'), SOMEBODY, SOMEBODY);
    expect(await look('bin/qemu')).toEqual({ path: join(dir, 'bin'), why: `belongs to user ${SOMEBODY}` });
    expect(await look('bin/qemu', [ME, SOMEBODY])).toBeUndefined();
  });

  (isRoot ? it : it.skip)("is another user's entry of a folder that all share", async () => {
    chmodSync(join(dir, 'bin'), 0o1777);
    expect(await look('bin/qemu')).toBeUndefined();
    lchownSync(join(dir, 'bin/qemu'), SOMEBODY, SOMEBODY);
    expect(await look('bin/qemu')).toMatchObject({ path: join(dir, 'bin/qemu') });
    symlinkSync('/bin/sh', join(dir, 'bin/link'));
    lchownSync(join(dir, 'bin/link'), SOMEBODY, SOMEBODY);
    expect(await look('bin/link')).toMatchObject({ path: join(dir, 'bin/link') });
  });
});
