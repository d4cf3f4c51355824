import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { checkSocketsFree } from '../../adapters/kvm/restore/sockets.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-sockets-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

const serving = (path: string) => [
  { name: 'chardev', spelling: '-chardev', value: `socket,id=a,path=${path},server=on,wait=off` },
];

/** QEMU removes whatever is in the way of a socket that it opens. */
describe('a path on which a restored QEMU is to listen', () => {
  it.each([
    ['the monitor', () => checkSocketsFree([], '/', join(dir, 'there'))],
    ['another socket', () => checkSocketsFree(serving('there'), dir, join(dir, 'qmp'))],
  ])('is refused when a file of somebody is there: %s', async (_, check) => {
    writeFileSync(join(dir, 'there'), 'thesis');
    await expect(check()).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
      detail: { path: join(dir, 'there') },
    });
    expect(statSync(join(dir, 'there')).isFile()).toBe(true);
  });

  it('is refused when it is a link', async () => {
    symlinkSync(join(dir, 'elsewhere'), join(dir, 'qmp'));
    await expect(checkSocketsFree([], '/', join(dir, 'qmp'))).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
    });
  });

  it('may be free, or have a socket on which nobody listens', async () => {
    const path = join(dir, 'qmp');
    await checkSocketsFree(serving('other'), dir, path);
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(join(dir, 'short'), resolve));
    await expect(checkSocketsFree([], '/', join(dir, 'short'))).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
    });
    await new Promise((resolve) => server.close(resolve));
  });
});
