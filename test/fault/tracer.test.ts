import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { callInQemu } from '../../adapters/kvm/trackers/pagemap-scan/tracer/tracer.js';
import { freezers } from '../support/frozen.js';
import { BLOCKED_SIGNALS, RegisterCheck } from '../support/register-check.js';

const OPEN = { number: 323, args: [0o2004001] };
const SYS_CLOSE = 3;
const SYS_GETPPID = 110;
/** The calls of one run without signals; a run that needs more is one that was not killed. */
const MAX_CALLS = 60;

let dir: string;
let check: RegisterCheck;
let children: ChildProcess[];
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-tracer-'));
  check = await RegisterCheck.start(dir);
  children = [];
});
afterEach(async () => {
  delete process.env.CAIRN_TRACER_FAULT_POINT;
  for (const child of children) child.kill('SIGKILL');
  await check.stop();
  rmSync(dir, { recursive: true });
});

/** A program of `test/support`, once it has said that it is ready. */
async function startProgram(name: string, argument: number, ready: string): Promise<ChildProcess> {
  const path = fileURLToPath(new URL(`../support/${name}.js`, import.meta.url));
  const child = spawn(process.execPath, [path, String(argument)], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  const said = await new Promise<Buffer>((resolve) => child.stdout.once('data', resolve));
  expect(said.toString()).toBe(`${ready}\n`);
  return child;
}

function userfaultfds(): readonly number[] {
  return readdirSync(`/proc/${check.pid}/fd`)
    .map(Number)
    .filter((fd) => readlinkSync(`/proc/${check.pid}/fd/${fd}`) === 'anon_inode:[userfaultfd]');
}

/** It runs on as it would have without us: every register checked, no call cut short, its own mask, nobody's tracee. */
async function expectUntouched(): Promise<void> {
  const checked = await check.waitForProgress();
  expect(checked).toMatchObject({ failure: 0, interrupted: checked.handled });
  expect(check.deathSignal).toBeUndefined();
  expect(check.status('SigBlk')).toBe(BLOCKED_SIGNALS);
  expect(check.status('TracerPid')).toBe('0');
  expect(check.status('State')).not.toMatch(/^t/);
}

/** @returns how many tracers were killed until one was not */
async function killAtEachCall(each: () => Promise<void>): Promise<number> {
  for (let call = 1; call < MAX_CALLS; call++) {
    process.env.CAIRN_TRACER_FAULT_POINT = String(call);
    const outcome = await callInQemu(check.pid, OPEN).catch((error: unknown) => error as Error);
    await each();
    if (typeof outcome === 'number') return call - 1;
    expect(outcome).toMatchObject({ code: 'TRACKER_UNAVAILABLE', retryable: true });
  }
  throw new Error('no tracer came to its end');
}

/** Sends one signal after the other, each when the one before was handled. @returns how many */
async function countSignals(end: AbortSignal): Promise<number> {
  let sent = 0;
  while (!end.aborted) {
    process.kill(check.pid, 'SIGUSR1');
    sent++;
    await check.waitFor(({ handled }) => handled >= sent);
  }
  return sent;
}

describe('a system call inside another process', () => {
  it('returns its result, and leaves the thread as it was', async () => {
    const opened = await callInQemu(check.pid, OPEN);
    expect(userfaultfds()).toEqual([opened]);
    expect(await callInQemu(check.pid, { number: SYS_GETPPID, args: [] })).toBe(process.pid);
    expect(await callInQemu(check.pid, { number: SYS_CLOSE, args: [999] })).toBe(-9);
    expect(await callInQemu(check.pid, { number: SYS_CLOSE, args: [opened] })).toBe(0);
    expect(userfaultfds()).toEqual([]);
    await expectUntouched();
    expect(check.read().interrupted).toBe(0);
  });

  it('is not made when the descriptor it is for has become another file', async () => {
    const opened = await callInQemu(check.pid, OPEN);
    const call = { number: SYS_CLOSE, args: [opened], descriptor: { number: opened, inode: 1 } };
    await expect(callInQemu(check.pid, call)).rejects.toMatchObject({ code: 'TRACKER_FAILED' });
    expect(userfaultfds()).toEqual([opened]);
    await expectUntouched();
  });

  it("may lose its tracer after any of the tracer's calls", async () => {
    expect(await killAtEachCall(expectUntouched)).toBeGreaterThan(10);
    expect(check.read().interrupted).toBe(0);
  }, 120_000);

  it('may lose its tracer while signals come in, and no signal is lost', async () => {
    const killing = new AbortController();
    const signals = countSignals(killing.signal);
    for (let round = 0; round < 3; round++) {
      await killAtEachCall(async () => {
        const { loops } = check.read();
        await check.waitFor((checked) => checked.loops > loops || checked.failure > 0);
        expect(check.read().failure).toBe(0);
      });
    }
    killing.abort();
    const sent = await signals;
    expect(sent).toBeGreaterThan(0);
    const checked = await check.waitForProgress();
    expect(checked).toMatchObject({ failure: 0, handled: sent });
    expect(check.status('SigBlk')).toBe(BLOCKED_SIGNALS);
  }, 240_000);
});

describe('a process that cannot be interrupted', () => {
  it('is refused while a signal has stopped it, and stays stopped', async () => {
    process.kill(check.pid, 'SIGSTOP');
    await expect(callInQemu(check.pid, OPEN)).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
    expect(check.status('State')).toMatch(/^T/);
    process.kill(check.pid, 'SIGCONT');
    await expectUntouched();
    expect(userfaultfds()).toEqual([]);
  });

  it('is refused while a debugger traces it', async () => {
    const tracing = await startProgram('debugger', check.pid, 'tracing');
    await expect(callInQemu(check.pid, OPEN)).rejects.toMatchObject({ code: 'VM_PERMISSION' });
    expect(check.status('TracerPid')).toBe(String(tracing.pid));
    expect((await check.waitForProgress()).failure).toBe(0);
  });

  it('is refused when its sandbox would end it for the call, and is free to make others', async () => {
    const sandboxed = await startProgram('sandboxed', OPEN.number, 'sandboxed');
    await expect(callInQemu(sandboxed.pid!, OPEN)).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
    expect(await callInQemu(sandboxed.pid!, { number: SYS_GETPPID, args: [] })).toBe(process.pid);
    expect(sandboxed.signalCode).toBeNull();
  });

  it('is refused while it is frozen, and nothing is made of the call later', async () => {
    const usable = freezers();
    if (usable.length === 0) console.log('skipped: no control group can be made here');
    for (const { freeze } of usable) {
      const thaw = await freeze(check.pid);
      try {
        await expect(callInQemu(check.pid, OPEN)).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
        expect(check.status('TracerPid')).toBe('0');
      } finally {
        await thaw();
      }
      await expectUntouched();
      expect(userfaultfds()).toEqual([]);
    }
  }, 60_000);

  it('has ended', async () => {
    await check.stop();
    await expect(callInQemu(check.pid, OPEN)).rejects.toMatchObject({ code: 'VM_GONE' });
  });
});
