import { mkdtemp, rm, writeFile, readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { Ledger, type LedgerEntry } from '../../src/checkpoint/ledger.js';
import { VmLock } from '../../src/checkpoint/vm-lock.js';
import type { VmIdentity } from '../../src/hypervisor/vm.js';

const identity: VmIdentity = {
  hypervisor: 'kvm',
  name: 'a',
  uuid: '',
  machineType: 'pc',
  instance: '12:345',
};
const entry: LedgerEntry = { state: 'clean', token: 't', repositoryId: 'r', chain: 'a', checkpointId: 'c' };

let dir = '';
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'cairn-ledger-'));
});
afterEach(() => rm(dir, { recursive: true }));

describe('the ledger', () => {
  it('gives back what was written last, to another process too', async () => {
    await new Ledger(dir, identity).write(entry);
    expect(await new Ledger(dir, identity).read()).toEqual(entry);
  });

  it('knows nothing of another run of the VM', async () => {
    await new Ledger(dir, identity).write(entry);
    expect(await new Ledger(dir, { ...identity, instance: '12:346' }).read()).toBeUndefined();
  });

  it.each(['', '{', '{"state":"clean"}', 'null'])(
    'trusts nothing that is not a whole entry: %j',
    async (text) => {
      await new Ledger(dir, identity).write(entry);
      const [file] = await readdir(dir);
      await writeFile(join(dir, file!), text);
      expect(await new Ledger(dir, identity).read()).toBeUndefined();
    },
  );
});

describe('the lock of a running VM', () => {
  it('is held by one process at a time', async () => {
    const lock = await VmLock.take(dir, identity);
    await expect(VmLock.take(dir, identity)).rejects.toMatchObject({
      code: 'VM_LOCKED',
      detail: { pid: process.pid },
    });
    await lock.release();
    await (await VmLock.take(dir, identity)).release();
  });

  it('is taken over from a process that is gone', async () => {
    const lock = await VmLock.take(dir, identity);
    const [file] = await readdir(dir);
    await writeFile(join(dir, file!), JSON.stringify({ pid: process.pid, startTime: '1' }));
    await (await VmLock.take(dir, identity)).release();
    await lock.release();
  });
});
