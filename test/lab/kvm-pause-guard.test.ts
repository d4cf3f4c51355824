import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import { LabMachine } from './machine.js';

const PAUSER = fileURLToPath(new URL('../support/pause-and-wait.js', import.meta.url));
/** It looks more seldom after 30 s, but goes on looking. */
const LONGER_THAN_A_PATIENT_GUARD_MS = 32_000;

describe('a VM whose Cairn is killed in the pause', () => {
  let machine: LabMachine;
  let runtimeDir: string;
  beforeAll(async () => {
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-guard-'));
    machine = await LabMachine.start({ name: 'guard' });
  });
  afterAll(async () => {
    await machine.destroy();
    rmSync(runtimeDir, { recursive: true });
  });

  async function pauser(): Promise<{ child: ChildProcess; guardPid: number }> {
    const child = spawn(process.execPath, [PAUSER, machine.address, runtimeDir], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: {},
    });
    const text = await new Promise<string>((resolve, reject) => {
      child.stdout.setEncoding('latin1').once('data', resolve);
      child.once('exit', () => reject(new Error('the pauser ended by itself')));
    });
    return { child, guardPid: Number(text.split(' ')[1]) };
  }

  function markers(): readonly string[] {
    return readdirSync(runtimeDir).filter((name) => name.startsWith('paused-'));
  }

  async function ended(pid: number): Promise<void> {
    while (existsSync(`/proc/${pid}`)) await sleep(20);
  }

  async function waitUntilRunning(): Promise<void> {
    while ((await machine.qmp.status()) !== 'running') await sleep(20);
  }

  it('is resumed by the guard', async () => {
    const { child, guardPid } = await pauser();
    expect(await machine.qmp.status()).toBe('paused');
    expect(markers()).toHaveLength(1);
    child.kill('SIGKILL');
    await waitUntilRunning();
    await machine.waitForProgress();
    await ended(guardPid);
    expect(markers()).toEqual([]);
  });

  it('is left alone by the guard when the marker is gone: somebody has seen to it since', async () => {
    const { child, guardPid } = await pauser();
    for (const name of markers()) rmSync(join(runtimeDir, name));
    child.kill('SIGKILL');
    await ended(guardPid);
    expect(await machine.qmp.status()).toBe('paused');
    await machine.qmp.command('cont');
  });

  it('is resumed by the guard however long another client keeps the socket', async () => {
    const { child, guardPid } = await pauser();
    // Waits in the queue of the socket, so it is served before the guard.
    const other = connect(machine.qmpPath);
    await new Promise((resolve) => other.once('connect', resolve));
    child.kill('SIGKILL');
    await new Promise((resolve) => other.once('data', resolve));
    await sleep(LONGER_THAN_A_PATIENT_GUARD_MS);
    expect(await machine.qmp.status()).toBe('paused');
    other.destroy();
    await waitUntilRunning();
    await ended(guardPid);
    expect(markers()).toEqual([]);
  });

  it('is resumed by the next Cairn when the guard was killed too', async () => {
    const { child, guardPid } = await pauser();
    expect(guardPid).toBeGreaterThan(0);
    process.kill(guardPid, 'SIGKILL');
    child.kill('SIGKILL');
    await new Promise((resolve) => child.once('exit', resolve));
    await sleep(200);
    expect(await machine.qmp.status()).toBe('paused');
    const vm = await attachKvm(machine.address, { runtimeDir });
    expect(await vm.runState.read()).toBe('running');
    await vm.close();
    expect(markers()).toEqual([]);
    await machine.waitForProgress();
  });

  it('stays paused when it was its operator who paused it', async () => {
    await machine.qmp.command('stop');
    const { child } = await pauser();
    child.kill('SIGKILL');
    await new Promise((resolve) => child.once('exit', resolve));
    await sleep(500);
    expect(await machine.qmp.status()).toBe('paused');
    const vm = await attachKvm(machine.address, { runtimeDir });
    expect(await vm.runState.read()).toBe('paused');
    await vm.close();
    await machine.qmp.command('cont');
  });
});
