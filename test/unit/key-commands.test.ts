/** The command line of encrypted repositories. */

import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, describe, expect, it } from '@jest/globals';

import { CAIRN_MAIN } from '../support/cairn-main.js';

const top = mkdtempSync(join(tmpdir(), 'cairn-keys-'));
afterAll(() => rmSync(top, { recursive: true }));
const repo = join(top, 'repo');
const inTop = (name: string, text: string): string => {
  writeFileSync(join(top, name), text);
  return join(top, name);
};
const key = inTop('key', 'k'.repeat(32));
const other = inTop('other', 'o'.repeat(32));
const words = inTop('words', 'a passphrase\nnot this\n');

interface Ended {
  readonly exitCode: number | null;
  readonly last: Readonly<Record<string, unknown>>;
}

function cairn(args: readonly string[], env: Readonly<Record<string, string>> = {}): Ended {
  const { status, stdout } = spawnSync(process.execPath, [CAIRN_MAIN, ...args, '--json'], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH, CAIRN_REPOSITORY: repo, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines = stdout.trim().split('\n');
  return { exitCode: status, last: JSON.parse(lines.at(-1)!) as Ended['last'] };
}

const idsOf = ({ last }: Ended): readonly string[] => (last.keys as { id: string }[]).map(({ id }) => id);

describe('an encrypted repository', () => {
  it('is made with a key, and not without', () => {
    expect(cairn(['init', '--encrypt'])).toMatchObject({ exitCode: 12, last: { code: 'KEY_NEEDED' } });
    expect(cairn(['init', '--encrypt', '--key-file', words])).toMatchObject({ exitCode: 12 });
    expect(cairn(['init', '--encrypt', '--no-encryption'])).toMatchObject({ exitCode: 2 });
    expect(cairn(['init', '--key-file', key])).toMatchObject({ exitCode: 0, last: { encrypted: true } });
    expect(cairn(['init', '--key-file', key])).toMatchObject({ last: { code: 'REPO_EXISTS' } });
  });

  it('is opened with its key, by option or environment, and refused with 12 otherwise', () => {
    expect(cairn(['list', '--key-file', key])).toMatchObject({ exitCode: 0 });
    expect(cairn(['list'], { CAIRN_KEY_FILE: key })).toMatchObject({ exitCode: 0 });
    expect(cairn(['list'])).toMatchObject({ exitCode: 12, last: { code: 'KEY_NEEDED' } });
    expect(cairn(['list', '--key-file', other])).toMatchObject({ exitCode: 12, last: { code: 'KEY_WRONG' } });
    expect(cairn(['list', '--key-file', join(top, 'none')])).toMatchObject({ exitCode: 12 });
  });

  it('takes further keys, lists them without any, and gives them up but for the last', () => {
    const added = cairn(['key', 'add', '--key-file', key, '--new-passphrase-file', words, '--label', 'mine']);
    expect(added.last.keys).toMatchObject([{ kind: 'key-file' }, { kind: 'passphrase', label: 'mine' }]);
    expect(idsOf(cairn(['key', 'list']))).toEqual(idsOf(added));
    expect(cairn(['list', '--passphrase-file', words])).toMatchObject({ exitCode: 0 });
    expect(cairn(['list'], { CAIRN_PASSPHRASE: 'a passphrase' })).toMatchObject({ exitCode: 0 });
    expect(cairn(['list', '--passphrase-command', `head -n1 ${words}`])).toMatchObject({ exitCode: 0 });
    const [first, second] = idsOf(added) as [string, string];
    expect(idsOf(cairn(['key', 'remove', first, '--passphrase-file', words]))).toEqual([second]);
    expect(cairn(['list', '--key-file', key])).toMatchObject({ exitCode: 12 });
    expect(cairn(['key', 'remove', second, '--passphrase-file', words])).toMatchObject({ exitCode: 2 });
  });

  it('gets new keys, which only the key that was given opens', () => {
    cairn(['key', 'add', '--passphrase-file', words, '--new-key-file', other]);
    expect(idsOf(cairn(['key', 'rotate', '--key-file', other]))).toHaveLength(1);
    expect(cairn(['list', '--passphrase-file', words])).toMatchObject({ exitCode: 12 });
    expect(cairn(['list', '--key-file', other])).toMatchObject({ exitCode: 0 });
  });

  it('says so when somebody without a key has changed its keys', () => {
    const changed = join(top, 'changed');
    cpSync(repo, changed, { recursive: true });
    const keys = JSON.parse(readFileSync(join(changed, 'keys'), 'utf8')) as { slots: object[] };
    writeFileSync(join(changed, 'keys'), JSON.stringify({ ...keys, slots: [...keys.slots, keys.slots[0]] }));
    expect(cairn(['list', '--key-file', other, '--repo', changed])).toMatchObject({
      exitCode: 23,
      last: { code: 'REPO_DAMAGED' },
    });
  });
});

describe('a repository in the clear', () => {
  it('is not used where an encrypted one is expected', () => {
    const clear = join(top, 'clear');
    expect(cairn(['init', '--repo', clear])).toMatchObject({ exitCode: 0, last: { encrypted: false } });
    expect(cairn(['list', '--repo', clear, '--key-file', key])).toMatchObject({
      exitCode: 22,
      last: { code: 'KEY_UNEXPECTED' },
    });
    expect(cairn(['init', '--repo', clear, '--encrypt', '--key-file', key])).toMatchObject({
      last: { code: 'REPO_EXISTS' },
    });
    expect(cairn(['key', 'list', '--repo', clear])).toMatchObject({ exitCode: 2 });
  });
});
