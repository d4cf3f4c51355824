/** The lock of a running VM between real processes of several users. */

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { processStartTimeSync } from '../../src/host/process-identity.js';
import { VmLock, type LockedVm } from '../../src/host/vm-lock.js';
import { IDENTITY } from '../unit/repository-model.js';

const urlOf = (path: string): string => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);

let dir = '';
const children: ChildProcess[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-locks-'));
  chmodSync(dir, 0o755);
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }
  rmSync(dir, { recursive: true });
});

interface Run {
  readonly child: ChildProcess;
  /** What it writes first. */
  readonly said: string;
}

/** Runs a script until it says something. */
async function run(script: string, uid?: number): Promise<Run> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    env: { PATH: process.env.PATH },
    cwd: '/',
    stdio: ['pipe', 'pipe', 'inherit'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
  children.push(child);
  const [said] = (await once(child.stdout, 'data')) as [Buffer];
  return { child, said: said.toString().trim() };
}

const NOBODY = 65534;
const OWNER = 64321;
const OTHER = 64322;

// Processes of other users are needed.
const asRoot = process.getuid?.() === 0 ? describe : describe.skip;

asRoot('the lock of a running VM, between users', () => {
  /** A process that stands for the VM, of its own user. */
  async function vmOf(uid: number): Promise<LockedVm> {
    const { child } = await run(`console.log('runs'); setInterval(() => undefined, 1000);`, uid);
    const pid = child.pid!;
    const startTime = processStartTimeSync(pid);
    return { identity: { ...IDENTITY, instance: `${pid}:${startTime}` }, process: { pid, startTime } };
  }

  const locking = (vm: LockedVm): string => `
    import { VmLock } from ${urlOf('host/vm-lock.js')};
    try {
      const lock = await VmLock.take(${JSON.stringify(vm)}, '/');
      console.log('held ' + lock.notice);
      setInterval(() => undefined, 1000);
    } catch (error) {
      console.log(error.code + ' ' + error.detail?.pid);
    }`;

  it('keeps root and the user of the VM apart', async () => {
    const vm = await vmOf(OWNER);
    const owner = await run(locking(vm), OWNER);
    expect(owner.said).toBe('held');
    await expect(VmLock.take(vm, dir)).rejects.toMatchObject({
      code: 'VM_LOCKED',
      detail: { pid: owner.child.pid },
    });
    owner.child.kill('SIGKILL');
    await once(owner.child, 'exit');
    const lock = await VmLock.take(vm, dir);
    expect(lock.notice).toBe('');
    expect((await run(locking(vm), OWNER)).said).toBe(`VM_LOCKED ${process.pid}`);
    await lock.release();
    expect((await run(locking(vm), OWNER)).said).toBe('held');
  });

  it.each([
    ['root', 0],
    ['the user of the VM', OWNER],
  ])('cannot be kept from %s by somebody who may not work on the VM', async (_, uid) => {
    const vm = await vmOf(OWNER);
    const squatter = await run(locking(vm), NOBODY);
    expect(squatter.said).toBe('held');
    const user = await run(locking(vm), uid);
    expect(user.said).toContain(`held process ${squatter.child.pid!} of user ${NOBODY}`);
    // It keeps others out all the same: those with the right, and those without.
    for (const other of [0, OWNER])
      expect((await run(locking(vm), other)).said).toBe(`VM_LOCKED ${user.child.pid!}`);
    expect((await run(locking(vm), OTHER)).said).toBe(`VM_LOCKED ${squatter.child.pid!}`);
  });

  it('cannot be kept by somebody who takes the name and answers nobody', async () => {
    const vm = await vmOf(OWNER);
    const name = JSON.stringify(`\0cairn-vm-process-${vm.process!.pid}_${vm.process!.startTime}`);
    await run(
      `import { connect, createServer } from 'node:net';
       // The queue of connections is full, so nobody learns who listens.
       createServer().listen({ path: ${name}, backlog: 1 }, () => {
         for (let n = 0; n < 8; n++) connect(${name}).on('error', () => undefined);
         console.log('listens');
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
       });`,
      NOBODY,
    );
    const lock = await VmLock.take(vm, dir);
    expect(lock.notice).not.toBe('');
    expect((await run(locking(vm), OWNER)).said).toBe(`VM_LOCKED ${process.pid}`);
    await lock.release();
  });

  it('keeps users apart who have nothing but the monitor, and gives way to those with the right', async () => {
    const vm = await vmOf(OWNER);
    const first = await run(locking(vm), OTHER);
    expect((await run(locking(vm), NOBODY)).said).toBe(`VM_LOCKED ${first.child.pid!}`);
    first.child.kill('SIGKILL');
    await once(first.child, 'exit');
    const lock = await VmLock.take(vm, dir);
    expect((await run(locking(vm), OTHER)).said).toBe(`VM_LOCKED ${process.pid}`);
    await lock.release();
  });

  it('is one lock, whatever the address by which the VM is reached', async () => {
    const vm = await vmOf(OWNER);
    const lock = await VmLock.take(vm, dir);
    const byLibvirt = { ...vm, identity: { ...vm.identity, hypervisor: 'libvirt' } };
    await expect(VmLock.take(byLibvirt, dir)).rejects.toMatchObject({ code: 'VM_LOCKED' });
    await lock.release();
  });

  it('is of no use for a VM that has ended', async () => {
    const vm = await vmOf(OWNER);
    const later = { ...vm, process: { ...vm.process!, startTime: '1' } };
    await expect(VmLock.take(later, dir)).rejects.toMatchObject({ code: 'VM_GONE' });
  });
});
