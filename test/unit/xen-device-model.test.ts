import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import {
  DeviceModel,
  deviceModelProblem,
  resumeDeviceModel,
} from '../../adapters/xen/devices/device-model.js';
import {
  captureHvmState,
  decodeDeviceState,
  encodeDeviceState,
} from '../../adapters/xen/stream/device-state.js';
import { REASON_SUSPEND, XenDomain } from '../../adapters/xen/domain/domain.js';
import { hazardsOf } from '../../adapters/xen/inspect/hazards.js';
import { LogDirtyTracker } from '../../adapters/xen/trackers/log-dirty-tracker.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { TypeScan } from '../../adapters/xen/memory/presence.js';
import { SuspendControl } from '../../adapters/xen/suspend/run-state.js';
import { LIBXL_RECORD } from '../../adapters/xen/stream/format.js';
import { readSaveFile } from '../../adapters/xen/stream/reader.js';
import { writeSaveFile } from '../../adapters/xen/stream/writer.js';
import { CheckpointError } from '../../src/errors.js';
import type { JsonObject } from '../../src/types.js';
import { FakeMonitor, type Answer } from '../support/fake-monitor.js';
import { FakeXen } from '../support/fake-xen.js';

let dir: string;
let xen: FakeXen;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-xen-model-'));
  xen = new FakeXen();
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const gone = new CheckpointError('VM_GONE', 'the connection to QEMU was lost');
const unreachable = new CheckpointError('VM_UNREACHABLE', 'nobody listens on it');

/** A QEMU 7.2 that runs, unless told otherwise. */
const running: Answer = (command): JsonObject => {
  if (command === 'query-status') return { status: 'running' };
  if (command === 'add-fd') return { 'fdset-id': 1 };
  return {};
};

describe('the device model of a Xen guest', () => {
  it('is held from before the stop until after the resume', async () => {
    const monitor = new FakeMonitor(running);
    let connections = 0;
    const model = new DeviceModel(7, (path) => {
      expect(path).toBe('/var/run/xen/qmp-libxl-7');
      connections++;
      return Promise.resolve(monitor);
    });
    await model.hold();
    await model.stop();
    await model.version();
    await model.exchange((held) => held.execute('query-block'));
    await model.resume();
    await model.release();
    expect(connections).toBe(1);
    expect(monitor.commands).toEqual(['add-fd', 'stop', 'query-version', 'query-block', 'cont', 'remove-fd']);
    await model.reportWrites();
    expect(connections).toBe(2);
  });

  it('is resumed over a new connection when the one that is held is lost', async () => {
    const lost = new FakeMonitor((command, args) => {
      if (command === 'cont') throw gone;
      return running(command, args);
    });
    const fresh = new FakeMonitor(running);
    const monitors = [lost, fresh];
    const model = new DeviceModel(7, () => Promise.resolve(monitors.shift()!));
    await model.hold();
    await model.resume();
    expect(fresh.commands).toEqual(['cont', 'query-status']);
  });

  it('is not said to run when it does not', async () => {
    const monitor = new FakeMonitor((): JsonObject => ({ status: 'paused' }));
    await expect(resumeDeviceModel('/m', () => Promise.resolve(monitor))).rejects.toMatchObject({
      code: 'VM_NOT_RESUMED',
    });
  });

  it.each([
    ['the QEMU that the lab has', { major: 7, minor: 2 }, false, false],
    ['a newer one', { major: 8, minor: 0 }, false, true],
    ['a newer one, for whoever asks for a trial', { major: 8, minor: 0 }, true, false],
    ['one that ends when it is told twice', { major: 6, minor: 2 }, true, true],
  ])('says what is wrong with %s', async (_, version, allowsUnproven, isProblem) => {
    const problem = await deviceModelProblem({ version: () => Promise.resolve(version) }, allowsUnproven);
    expect(problem !== '').toBe(isProblem);
  });

  it('says so when it does not answer', async () => {
    const problem = await deviceModelProblem({ version: () => Promise.reject(unreachable) }, true);
    expect(problem).toContain('nobody listens');
    const busy = new CheckpointError('VM_BUSY', 'another client has it', { retryable: true });
    const asked = deviceModelProblem({ version: () => Promise.reject(busy) }, true);
    await expect(asked).rejects.toMatchObject({ code: 'VM_BUSY' });
  });
});

describe('suspending a guest with a device model', () => {
  let order: string[];
  let fails: string;
  let error: CheckpointError;
  let control: SuspendControl;

  function step(name: string): () => Promise<void> {
    return () => {
      order.push(xen.isSuspended ? `${name}, suspended` : name);
      return fails === name ? Promise.reject(error) : Promise.resolve();
    };
  }

  beforeEach(() => {
    order = [];
    fails = '';
    // It has Xen drivers.
    xen.params.set(0, 1n);
    error = gone;
    const resume = xen.resume.bind(xen);
    xen.resume = (domid) => {
      order.push('guest');
      return resume(domid);
    };
    control = new SuspendControl({
      domain: new XenDomain(xen, xen.domid),
      uuid: xen.uuid,
      runtimeDir: dir,
      instance: 'i',
      foreignSave: () => '',
      answerLimitMs: 30,
      deviceModel: {
        descriptor: undefined,
        hold: step('hold'),
        stop: step('stop'),
        resume: step('resume'),
        release: step('release'),
      },
      guard: {
        modulePath: fileURLToPath(new URL('../support/quiet-guard.js', import.meta.url)),
        args: [],
      },
    });
  });
  afterEach(async () => {
    fails = '';
    await control.close();
  });

  it('stops it after the guest, and lets it go on before the guest', async () => {
    await control.pause();
    await control.resume();
    expect(order).toEqual(['hold', 'stop, suspended', 'resume, suspended', 'guest', 'release']);
  });

  it('changes nothing when it is stopped already', async () => {
    expect(await control.pause()).toBe(true);
    expect(await control.pause()).toBe(false);
    expect(order).toEqual(['hold', 'stop, suspended']);
    await control.resume();
    expect(xen.isSuspended).toBe(false);
  });

  it('asks nothing of the guest when its monitor cannot be had', async () => {
    fails = 'hold';
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_GONE' });
    expect(xen.isSuspended).toBe(false);
    expect(xen.store.get(`/local/domain/${xen.domid}/control/shutdown`)).toBeUndefined();
  });

  it('lets go of its monitor when the guest is about to shut down', async () => {
    xen.store.set(`/local/domain/${xen.domid}/control/shutdown`, 'poweroff');
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(order).toEqual(['hold', 'release']);
  });

  it('lets it go on when the guest does not suspend', async () => {
    xen.suspends = false;
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    await control.resume();
    expect(order).toContain('resume');
  });

  it('does not wake the guest while its device model does not go on, and does so at the next try', async () => {
    await control.pause();
    fails = 'resume';
    error = new CheckpointError('QMP_TIMEOUT', 'no answer to cont');
    await expect(control.resume()).rejects.toMatchObject({ code: 'QMP_TIMEOUT' });
    expect(xen.isSuspended).toBe(true);
    fails = '';
    await control.resume();
    expect(xen.isSuspended).toBe(false);
  });

  it('says so when the device model has ended, and wakes the guest all the same', async () => {
    await control.pause();
    fails = 'resume';
    error = unreachable;
    await expect(control.resume()).rejects.toMatchObject({ code: 'VM_NOT_RESUMED' });
    expect(xen.isSuspended).toBe(false);
  });

  it('suspends a guest without Xen drivers from outside', async () => {
    xen.params.set(0, 0n);
    xen.store.delete(`/local/domain/${xen.domid}/control/feature-suspend`);
    await control.pause();
    expect(xen.shutdowns).toEqual([REASON_SUSPEND]);
    expect(xen.store.get(`/local/domain/${xen.domid}/control/shutdown`)).toBeUndefined();
    await control.resume();
    expect(order).toEqual(['hold', 'stop, suspended', 'resume, suspended', 'guest', 'release']);
  });

  it('takes no checkpoint of a guest that somebody else suspended', async () => {
    xen.isSuspended = true;
    await expect(control.pause()).rejects.toMatchObject({ code: 'VM_STATE' });
    await control.resume();
    expect(xen.isSuspended).toBe(true);
  });

  it('lets both go on after a Cairn that was killed', async () => {
    const marker = { pid: 2 ** 22 + 1, startTime: '1', attachment: 'x' };
    writeFileSync(join(dir, 'xen-suspended-i.json'), JSON.stringify(marker));
    xen.isSuspended = true;
    expect(await control.recover()).toBe(true);
    expect(order).toEqual(['resume, suspended', 'guest']);
  });
});

describe('the dirty record of a guest with a device model', () => {
  const layout = layoutOf([{ firstFrame: 0, frameCount: 512 }]);
  let told: number;
  let whenTold: () => void = () => undefined;
  let saver: string;

  function makeTracker(): LogDirtyTracker {
    const domain = new XenDomain(xen, xen.domid);
    return new LogDirtyTracker({
      domain,
      layout,
      recordPath: join(dir, 'record.json'),
      presence: new TypeScan(domain, layout, () => 0),
      isStopped: () => xen.isSuspended,
      foreignSave: () => saver,
      reportWrites: () => {
        told++;
        whenTold();
        return Promise.resolve();
      },
    });
  }

  beforeEach(() => {
    whenTold = () => undefined;
    told = 0;
    saver = '';
  });

  it('begins only once the device model reports what it writes', async () => {
    const tracker = makeTracker();
    await expect(tracker.beginCheckpoint()).rejects.toMatchObject({ code: 'TRACKER_OFF' });
    expect(told).toBe(0);
    await tracker.start();
    expect(told).toBe(1);
    const { token } = tracker;
    await tracker.beginCheckpoint();
    expect(told).toBe(2);
    expect(tracker.token).toBe(token);
  });

  it('begins anew after a save by somebody else, which told the device model to report no more', async () => {
    const tracker = makeTracker();
    await tracker.start();
    const { token } = tracker;
    xen.switchOff();
    await tracker.beginCheckpoint();
    expect(told).toBe(2);
    expect(tracker.token).not.toBe(token);
  });

  it('is not trusted when it was switched off after it was proven', async () => {
    const tracker = makeTracker();
    await tracker.start();
    const before = tracker.token;
    await tracker.beginCheckpoint();
    xen.switchOff();
    expect(() => tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_FAILED' }));
    await tracker.beginCheckpoint();
    expect(tracker.token).not.toBe(before);
  });

  it('is not trusted when a save by somebody else began and ended while the device model was told', async () => {
    const tracker = makeTracker();
    await tracker.start();
    const { token } = tracker;
    whenTold = () => xen.switchOff();
    await expect(tracker.beginCheckpoint()).rejects.toMatchObject({
      code: 'TRACKER_FAILED',
      retryable: true,
    });
    expect(tracker.token).not.toBe(token);
    whenTold = () => undefined;
    expect(await tracker.beginCheckpoint()).not.toBe(token);
  });

  it('is not proven while somebody else saves the domain', async () => {
    const tracker = makeTracker();
    await tracker.start();
    saver = 'libxl-save-helper (process 1)';
    await expect(tracker.beginCheckpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    await expect(makeTracker().start()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(told).toBe(1);
  });
});

describe('the checkpoint of a guest with a device model', () => {
  const emulator = Uint8Array.from(Buffer.from('QEVM0123456789'));

  it('has its state beside the records of libxc, and as a record of libxl in the save file', async () => {
    const captured = captureHvmState(new XenDomain(xen, xen.domid), Uint32Array.of(0, 4));
    const state = decodeDeviceState(encodeDeviceState({ ...captured, emulator }));
    expect(Buffer.from(state.emulator!)).toEqual(Buffer.from(emulator));
    expect(state.before).toHaveLength(captured.before.length);
    expect(state.after).toHaveLength(captured.after.length);
    const layout = layoutOf([{ firstFrame: 0, frameCount: 512 }]);
    // eslint-disable-next-line @typescript-eslint/require-await -- stands for a chain
    async function* pages(): AsyncGenerator<{ firstPage: number; pageCount: number; bytes: null }> {
      yield { firstPage: 0, pageCount: 512, bytes: null };
    }
    const version = { major: 4, minor: 17 };
    const written = writeSaveFile({ config: '{}', version, state, layout, pages: pages() });
    const items: { readonly kind: string; readonly record?: { type: number; body: Uint8Array } }[] = [];
    for await (const item of readSaveFile(written)) items.push(item);
    const last = items.at(-1)!;
    expect(last.kind).toBe('emulator');
    expect(last.record?.type).toBe(LIBXL_RECORD.emulatorContext);
    // Id 2 (QEMU of today), index 0.
    expect(Buffer.from(last.record!.body)).toEqual(
      Buffer.concat([Buffer.from('0200000000000000', 'hex'), emulator]),
    );
  });
});

describe('what stands in the way of a checkpoint of an HVM guest', () => {
  const built = { 'type.hvm': { vga: { kind: 'none' }, vnc: { enable: 'False' } } };
  const plain = { c_info: { type: 'hvm' }, b_info: built, nics: [{ nictype: 'vif' }] };
  const deviceModel = { kind: 'qemu_xen', domain: '', problem: '', hasMovedMemory: false };
  const codes = (config: object, model: object = {}, minor = 17): readonly string[] =>
    hazardsOf({
      info: new XenDomain(xen, xen.domid).info(),
      config: { ...plain, ...config },
      offersSuspend: true,
      foreignSave: '',
      xen: { major: 4, minor },
      allowsUnproven: true,
      deviceModel: { ...deviceModel, ...model },
    }).map(({ code, effect }) => `${effect} ${code}`);
  const hvm = (more: object): object => ({ b_info: { 'type.hvm': { ...built['type.hvm'], ...more } } });

  it('is nothing for a plain one', () => {
    expect(codes({})).toEqual([]);
    expect(
      codes({ b_info: { 'type.hvm': {} }, nics: [{ nictype: 'vif_ioemu', model: 'rtl8139' }, {}] }),
    ).toEqual([]);
    expect(codes(hvm({ vnc: { enable: 'True' } }))).toEqual([]);
    expect(codes(hvm({ vga: { kind: 'std' } }))).toEqual([]);
    expect(codes(hvm({ bios: 'seabios', usb: 'False', serial: 'pty', altp2m: 'disabled' }))).toEqual([]);
  });

  it.each<[string, object, object, string]>([
    ['a stub domain', {}, { domain: '12' }, 'XEN_STUBDOM'],
    [
      'a stub domain that is asked for',
      { b_info: { ...built, device_model_stubdomain: 'True' } },
      {},
      'XEN_STUBDOM',
    ],
    ['the traditional device model', {}, { kind: 'qemu_xen_traditional' }, 'XEN_TRADITIONAL'],
    ['a graphics card of SPICE', hvm({ vga: { kind: 'qxl' } }), {}, 'XEN_VGA'],
    ['UEFI', hvm({ bios: 'ovmf' }), {}, 'XEN_FIRMWARE'],
    ['nested guests', { b_info: { ...built, nested_hvm: 'True' } }, {}, 'XEN_NESTED_HVM'],
    ['an emulated network card', { nics: [{ nictype: 'vif' }, { model: 'e1000' }] }, {}, 'XEN_EMULATED_NIC'],
    ['a graphics card passed through', hvm({ gfx_passthru: 'True' }), {}, 'XEN_PASSTHROUGH'],
    ['options of its own', { b_info: { ...built, extra: ['-device', 'x'] } }, {}, 'XEN_DEVICE_MODEL'],
    ['USB', hvm({ usbdevice_list: ['tablet'] }), {}, 'XEN_DEVICE_MODEL'],
    ['SPICE', hvm({ spice: { enable: 'True' } }), {}, 'XEN_DEVICE_MODEL'],
    ['a USB controller', { usbctrls: [{}] }, {}, 'XEN_DEVICE_MODEL'],
    ["Hyper-V's interfaces", hvm({ viridian: 'True' }), {}, 'XEN_DEVICE_MODEL'],
    ['memory of the device model', {}, { hasMovedMemory: true }, 'XEN_DEVICE_MODEL'],
    ['a QEMU that does not answer', {}, { problem: 'nobody listens' }, 'XEN_DEVICE_MODEL'],
  ])('is said for %s', (_, config, model, code) => {
    expect(codes(config, model)).toEqual([`refuse ${code}`]);
  });

  it('is a screen that is shown, on a hypervisor that tracks it with the same switch as everything else', () => {
    expect(codes(hvm({ vnc: { enable: 'True' } }), {}, 16)).toEqual(['refuse XEN_DISPLAY']);
    expect(codes(hvm({ vnc: {} }), {}, 16)).toEqual(['refuse XEN_DISPLAY']);
    expect(codes(hvm({}), {}, 16)).toEqual([]);
  });
});
