import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { XenVm } from '../../adapters/xen/xen-vm.js';
import { FakeXen } from '../support/fake-xen.js';

describe('an attached Xen domain', () => {
  let dir: string;
  let vm: XenVm;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-xen-vm-'));
    const xen = new FakeXen();
    const domain = new XenDomain(xen, xen.domid);
    const guard = {
      modulePath: fileURLToPath(new URL('../support/quiet-guard.js', import.meta.url)),
      args: [],
    };
    vm = await XenVm.attach(
      {
        address: 'xen:fake',
        runtimeDir: dir,
        name: 'fake',
        uuid: xen.uuid,
        config: { c_info: { type: 'pvh' } },
        bootId: 'boot',
      },
      { domain, guard, foreignSave: () => '' },
    );
  });
  afterEach(async () => {
    await vm.close();
    rmSync(dir, { recursive: true, force: true });
  });

  it('has no device state before one is saved', async () => {
    await expect(vm.deviceState.take()).rejects.toMatchObject({ code: 'VM_STATE' });
  });

  it('is gone once it is closed', async () => {
    await vm.memory.layout();
    await vm.close();
    await expect(vm.memory.layout()).rejects.toMatchObject({ code: 'VM_GONE' });
    await expect(vm.runState.read()).rejects.toMatchObject({ code: 'VM_GONE' });
    await expect(vm.runState.pause()).rejects.toMatchObject({ code: 'VM_GONE' });
  });
});
