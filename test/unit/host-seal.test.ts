import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { hostSealOf, isSealedWith } from '../../src/format/host-seal.js';
import { decodeManifest, encodeManifest, manifestKey, type Manifest } from '../../src/format/manifest.js';
import { findHostKey, makeHostKey } from '../../src/host/host-key.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { refuseUntrusted } from '../../src/restore/trust.js';

const KEY = new Uint8Array(32).fill(7);
const PLAN = { commands: [['/usr/bin/qemu', '-S']], details: [], disks: [] };

const MANIFEST: Manifest = {
  ...{ id: '0123456789abcdef', seq: 1, chain: 'web1', vmName: 'web1', parentId: null, kind: 'base' },
  time: '2026-01-01T00:00:00.000Z',
  hypervisor: 'kvm',
  identity: { hypervisor: 'kvm', name: 'web1', uuid: '', machineType: 'pc', instance: '1:2' },
  machine: { program: '/usr/bin/qemu', argv: ['qemu', '-S'], env: { B: '1', A: '2' } },
  layout: layOut([{ id: 'pc.ram', sizeBytes: 4096 }]),
  ...{ runState: 'running', packs: [], segments: [], deviceState: null, disks: [], maxDepth: 0 },
  ...{ storedBytes: 0, stats: {} },
};
const sealed: Manifest = { ...MANIFEST, hostSeal: hostSealOf(MANIFEST, KEY) };

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-key-'));
  process.env.CAIRN_STATE_DIR = join(dir, 'state');
});
afterEach(() => {
  delete process.env.CAIRN_STATE_DIR;
  rmSync(dir, { recursive: true });
});

describe('the mark by which a host knows its checkpoint', () => {
  it('holds for what was stored and read again', () => {
    const read = decodeManifest(manifestKey(sealed), 'web1', encodeManifest(sealed));
    expect(isSealedWith(read, KEY)).toBe(true);
    expect(isSealedWith(read, new Uint8Array(32))).toBe(false);
  });

  it('does not depend on the order of fields', () => {
    const machine = { env: { A: '2', B: '1' }, argv: ['qemu', '-S'], program: '/usr/bin/qemu' };
    expect(isSealedWith({ ...sealed, machine }, KEY)).toBe(true);
  });

  it.each<[string, Partial<Manifest>]>([
    ['another program', { machine: { ...MANIFEST.machine, program: '/tmp/evil-qemu' } }],
    ['other arguments', { machine: { ...MANIFEST.machine, argv: ['qemu', '-runas', 'root'] } }],
    [
      'another disk',
      { disks: [{ diskId: 'd', path: '/etc/shadow', driver: 'internal', data: {}, recordedIn: '' }] },
    ],
    ['another hypervisor', { hypervisor: 'libvirt' }],
    ['another id', { id: 'fedcba9876543210' }],
    ['another device state', { deviceState: { pack: 1, frame: 0, sizeBytes: 1, sha256: '' } }],
  ])('does not hold with %s', (_, change) => {
    expect(isSealedWith({ ...sealed, ...change }, KEY)).toBe(false);
  });
});

describe('a checkpoint that this host did not take', () => {
  it('is refused where nobody can be asked, by name of what it would run', async () => {
    await makeHostKey();
    for (const manifest of [MANIFEST, sealed])
      await expect(refuseUntrusted(manifest, PLAN, undefined)).rejects.toMatchObject({
        code: 'RESTORE_UNTRUSTED',
        message: expect.stringContaining('/usr/bin/qemu'),
        hint: expect.stringContaining('--trust-machine'),
      });
    await expect(refuseUntrusted(MANIFEST, undefined, undefined)).rejects.toMatchObject({
      code: 'RESTORE_UNTRUSTED',
    });
  });

  it('is shown whole to who is asked, and goes on with a yes alone', async () => {
    const shown: unknown[] = [];
    const answer = (is: boolean) => (plan: unknown) => {
      shown.push(plan);
      return Promise.resolve(is);
    };
    await refuseUntrusted(MANIFEST, PLAN, answer(true));
    await expect(refuseUntrusted(MANIFEST, PLAN, answer(false))).rejects.toMatchObject({
      code: 'RESTORE_UNTRUSTED',
    });
    expect(shown).toEqual([PLAN, PLAN]);
  });

  it('is no matter when the restore does nothing here', async () => {
    await refuseUntrusted(MANIFEST, { commands: [], details: [], disks: [] }, undefined);
    await expect(
      refuseUntrusted(MANIFEST, { commands: [], details: [], disks: ['vda: lvm /dev/vg/web1'] }, undefined),
    ).rejects.toMatchObject({ code: 'RESTORE_UNTRUSTED' });
  });

  it("is told from this host's own, which nobody is asked about", async () => {
    const key = await makeHostKey();
    await refuseUntrusted({ ...MANIFEST, hostSeal: hostSealOf(MANIFEST, key) }, PLAN, undefined);
  });
});

describe('the key of a host', () => {
  it('is made once, for its owner alone', async () => {
    expect(await findHostKey()).toBeUndefined();
    const [key, same] = await Promise.all([makeHostKey(), makeHostKey()]);
    expect(key).toHaveLength(32);
    expect(same).toEqual(key);
    expect(await findHostKey()).toEqual(key);
    const path = join(dir, 'state/host-key');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readFileSync(path)).toEqual(Buffer.from(key));
  });

  it.each<[string, (path: string) => void]>([
    ['can be read by others', (path) => chmodSync(path, 0o640)],
    ['is cut off', (path) => truncateSync(path, 16)],
    [
      'is a link',
      (path) => {
        rmSync(path);
        symlinkSync('/etc/hostname', path);
      },
    ],
    ['lies in a folder that others may write to', () => chmodSync(join(dir, 'state'), 0o777)],
  ])('is not used when it %s', async (_, spoil) => {
    await makeHostKey();
    spoil(join(dir, 'state/host-key'));
    await expect(findHostKey()).rejects.toMatchObject({ code: 'VM_PERMISSION' });
    await expect(makeHostKey()).rejects.toMatchObject({ code: 'VM_PERMISSION' });
  });
});
