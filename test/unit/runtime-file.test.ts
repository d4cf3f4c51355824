import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { writeRuntimeFile, writeRuntimeFileSync } from '../../src/host/runtime-file.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-runtime-file-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

describe.each([
  ['', writeRuntimeFile],
  [
    ', at once',
    (path: string, text: string) => Promise.resolve().then(() => writeRuntimeFileSync(path, text)),
  ],
])('a file of the runtime folder%s', (_, write) => {
  it('is replaced, and open to its owner only', async () => {
    const path = join(dir, 'ledger');
    writeFileSync(path, 'old');
    await write(path, 'new');
    expect(readFileSync(path, 'utf8')).toBe('new');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(dir)).toEqual(['ledger']);
  });

  it('that cannot be written is named in the error, and nothing is left beside it', async () => {
    const path = join(dir, 'ledger');
    mkdirSync(path);
    await expect(write(path, 'new')).rejects.toMatchObject({
      code: 'STORAGE_IO',
      message: expect.stringContaining(path),
    });
    expect(readdirSync(dir)).toEqual(['ledger']);
  });
});
