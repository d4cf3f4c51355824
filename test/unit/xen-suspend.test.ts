import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { readPauseMarker, setTakenAway } from '../../adapters/guard/pause-marker.js';
import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { SuspendControl } from '../../adapters/xen/suspend/run-state.js';
import { FakeXen } from '../support/fake-xen.js';

const EACCES = 13;

describe('suspending a Xen guest', () => {
  let dir: string;
  let xen: FakeXen;
  let control: SuspendControl;
  let saver: string;

  const request = (): string | undefined => xen.store.get(`/local/domain/${xen.domid}/control/shutdown`);
  const markers = (): readonly string[] =>
    readdirSync(dir).filter((name) => name.startsWith('xen-suspended-'));

  function make(): SuspendControl {
    return new SuspendControl({
      domain: new XenDomain(xen, xen.domid),
      uuid: xen.uuid,
      runtimeDir: dir,
      instance: `${xen.domid}:${xen.uuid}:boot`,
      foreignSave: () => saver,
      answerLimitMs: 30,
      guard: {
        modulePath: fileURLToPath(new URL('../support/quiet-guard.js', import.meta.url)),
        args: [],
      },
    });
  }

  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-xen-suspend-'));
    xen = new FakeXen();
    saver = '';
    control = make();
  });
  afterEach(async () => {
    await control.close();
    rmSync(dir, { recursive: true, force: true });
  });

  it('asks the guest, and wakes it again', async () => {
    expect(control.read()).toBe('running');
    expect(await control.pause()).toBe(true);
    expect(control.read()).toBe('paused');
    expect(control.stopNumber()).toBe(1);
    expect(markers()).toHaveLength(1);
    await control.resume();
    expect(control.read()).toBe('running');
    expect(control.stopNumber()).toBe(0);
    expect(markers()).toEqual([]);
  });

  it('leaves a guest suspended that was found so', async () => {
    xen.isSuspended = true;
    expect(await control.pause()).toBe(false);
    await control.resume();
    expect(xen.isSuspended).toBe(true);
  });

  it('says so when somebody else woke the guest in between', async () => {
    await control.pause();
    xen.isSuspended = false;
    await expect(control.resume()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(markers()).toEqual([]);
  });

  it('counts each stop', async () => {
    await control.pause();
    await control.resume();
    await control.pause();
    expect(control.stopNumber()).toBe(2);
  });

  it('takes the request back when the guest does not answer', async () => {
    xen.takesRequest = false;
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(request()).toBe('');
    await control.resume();
    expect(xen.resumed).toEqual([]);
    expect(markers()).toEqual([]);
  });

  it('stays on watch over a guest that took the request and is slow to suspend', async () => {
    xen.suspends = false;
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    await control.resume();
    expect(markers()).toHaveLength(1);
    xen.isSuspended = true;
    await control.resume();
    expect(control.read()).toBe('running');
    expect(markers()).toEqual([]);
  });

  it('refuses a guest that cannot suspend itself, with nothing done to it', async () => {
    xen.store.delete(`/local/domain/${xen.domid}/control/feature-suspend`);
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(request()).toBeUndefined();
  });

  it('does not get in the way of a shutdown that was asked for', async () => {
    xen.store.set(`/local/domain/${xen.domid}/control/shutdown`, 'poweroff');
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(request()).toBe('poweroff');
  });

  it('does not suspend while somebody else saves the domain', async () => {
    saver = 'libxl-save-helper (process 1)';
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE', retryable: true });
    expect(request()).toBeUndefined();
  });

  it('says so when the guest shut down instead', async () => {
    xen.suspends = false;
    xen.isDown = true;
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(control.read()).toBe('other');
  });

  it('does not take a guest stopped with xl pause for a suspended one', () => {
    xen.isPaused = true;
    expect(control.read()).toBe('other');
  });

  it('says so when the guest stays suspended', async () => {
    await control.pause();
    xen.fault = { call: 'resume', errno: EACCES };
    await expect(control.resume()).rejects.toMatchObject({ code: 'VM_NOT_RESUMED' });
    xen.fault = undefined;
    await control.resume();
  });

  describe('when the pause went on for too long', () => {
    const marker = (): string => join(dir, markers()[0]!);
    const takeAway = (how: 'resuming' | 'resumed'): void =>
      setTakenAway(marker(), readPauseMarker(marker())!.attachment, how);

    it('fails the checkpoint, and leaves alone what somebody has done since the guard woke the guest', async () => {
      await control.pause();
      takeAway('resuming');
      xen.isSuspended = false;
      takeAway('resumed');
      // `xl save`, for example.
      xen.isSuspended = true;
      await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT', retryable: true });
      expect(xen.isSuspended).toBe(true);
      expect(xen.resumed).toEqual([]);
      expect(markers()).toEqual([]);
    });

    it('wakes the guest itself when nobody else is there to do so', async () => {
      await control.pause();
      rmSync(marker());
      await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
      expect(control.read()).toBe('running');
    });

    it('does not wait for a guest whose request the guard has withdrawn', async () => {
      xen.suspends = false;
      const stopping = (): void => {
        takeAway('resuming');
        takeAway('resumed');
      };
      await expect(control.pause({ stopping })).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
      await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
    });
  });

  describe('after a Cairn that was killed', () => {
    const marker = (): string => join(dir, `xen-suspended-${xen.domid}_${xen.uuid}_boot.json`);
    beforeEach(() =>
      writeFileSync(marker(), JSON.stringify({ pid: 2 ** 22 + 1, startTime: '1', attachment: 'x' })),
    );

    it('wakes the guest', async () => {
      xen.isSuspended = true;
      expect(await control.recover()).toBe(true);
      expect(xen.isSuspended).toBe(false);
      expect(existsSync(marker())).toBe(false);
    });

    it('takes back a request that the guest has not seen yet', async () => {
      xen.store.set(`/local/domain/${xen.domid}/control/shutdown`, 'suspend');
      expect(await control.recover()).toBe(false);
      expect(request()).toBe('');
    });

    it('leaves alone what nobody marked', async () => {
      rmSync(marker());
      xen.isSuspended = true;
      expect(await control.recover()).toBe(false);
      expect(xen.isSuspended).toBe(true);
    });
  });
});
