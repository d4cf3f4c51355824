import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile, readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { Ledger, type LedgerEntry } from '../../src/checkpoint/trust/ledger.js';
import { VmLock } from '../../src/host/vm-lock.js';
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
    await new Ledger(dir, identity).write({ ...entry, rewoundTo: 'd' });
    expect(await new Ledger(dir, identity).read()).toEqual({ ...entry, rewoundTo: 'd' });
  });

  it('knows nothing of another run of the VM', async () => {
    await new Ledger(dir, identity).write(entry);
    expect(await new Ledger(dir, { ...identity, instance: '12:346' }).read()).toBeUndefined();
  });

  it.each(['', '{', '{"state":"clean"}', 'null', JSON.stringify({ ...entry, rewoundTo: 1 })])(
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
    const lock = await VmLock.take({ identity }, dir);
    await expect(VmLock.take({ identity }, dir)).rejects.toMatchObject({
      code: 'VM_LOCKED',
      detail: { pid: process.pid },
    });
    await lock.release();
    await (await VmLock.take({ identity }, dir)).release();
  });

  it('is free again once its process is killed', async () => {
    const code = `
      import { VmLock } from ${JSON.stringify(new URL('../../src/host/vm-lock.js', import.meta.url).href)};
      await VmLock.take({ identity: ${JSON.stringify(identity)} }, ${JSON.stringify(dir)});
      process.stdout.write('held');
      setInterval(() => undefined, 1000);`;
    const holder = spawn(process.execPath, ['--input-type=module', '-e', code]);
    await once(holder.stdout, 'data');
    await expect(VmLock.take({ identity }, dir)).rejects.toMatchObject({ detail: { pid: holder.pid } });
    holder.kill('SIGKILL');
    await once(holder, 'exit');
    await (await VmLock.take({ identity }, dir)).release();
  });

  it('is another one for another run of the VM', async () => {
    const lock = await VmLock.take({ identity }, dir);
    await (await VmLock.take({ identity: { ...identity, instance: '12:346' } }, dir)).release();
    await lock.release();
  });
});
