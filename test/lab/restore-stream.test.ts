import { createWriteStream } from 'node:fs';
import { createHash } from 'node:crypto';
import { readFileSync, readdirSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { once } from 'node:events';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import { exportCheckpoint } from '../../adapters/kvm/export.js';
import { deviceSections } from '../../adapters/qemu/stream/device-state.js';
import { restoreCheckpoint } from '../../adapters/kvm/restore/restore.js';
import { splitSections } from '../../adapters/qemu/stream/sections.js';
import type { KvmRestoreRequest } from '../../adapters/kvm/restore/options.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';
import {
  externalRecord,
  externalSnapshot,
  internalRecord,
} from '../../adapters/disks/qcow2/qcow2-records.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import { CheckpointError } from '../../src/errors.js';
import { LabMachine } from './machine.js';
import { record, type Recorded } from './restore-source.js';
import { differingPages, groundTruth } from './support/ground-truth.js';
import { qemuProgram, scratchDir, type QemuVersion } from './support/lab-files.js';

const PLAIN: KvmRestoreRequest = { setArgs: [], dropArgs: [], paused: false, keepDisks: false };

/** Memory that fails to be read after some of it. */
function damaged(
  source: CheckpointSource,
  afterBytes: number,
  error: Error = new CheckpointError('REPO_DAMAGED', 'pack 7 is damaged'),
): CheckpointSource {
  async function* pages(): AsyncGenerator<PageChunk> {
    let bytes = 0;
    for await (const chunk of source.pages()) {
      bytes += chunk.pageCount * 4096;
      if (bytes > afterBytes) throw error;
      yield chunk;
    }
  }
  return { ...source, pages, pagesAsStored: pages };
}

function qemuProcessesOf(dir: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(`${dir}/`);
    } catch {
      return false;
    }
  });
}

const alive: LabMachine[] = [];
beforeAll(() => {
  process.env.CAIRN_RUNTIME_DIR = scratchDir('runtime');
});
afterEach(async () => {
  for (const machine of alive.splice(0)) await machine.kill();
});

async function adopt(dir: string, pid: number): Promise<LabMachine> {
  const machine = await LabMachine.adopt('restored', dir, pid);
  alive.push(machine);
  return machine;
}

describe.each<QemuVersion>(['7.2', '10.0'])('a checkpoint of a QEMU %s', (version) => {
  let dir: string;
  let recorded: Recorded;
  let lastTick: number;
  let checksum: string;

  beforeAll(async () => {
    const machine = await LabMachine.start({
      name: 'origin',
      qemu: version,
      memoryMib: 512,
      devices: ['net', 'balloon', 'vga'],
    });
    dir = machine.dir;
    await machine.guest('lab fill 64', 120_000);
    checksum = (await machine.guest('lab sum', 120_000)).trim();
    await machine.waitForProgress();
    recorded = await record(machine);
    lastTick = machine.lastTick();
    await machine.kill();
  }, 300_000);
  afterAll(() => {
    expect(qemuProcessesOf(dir)).toEqual([]);
  });

  it("has the same devices as QEMU's own stream of that instant, but for the run state", async () => {
    const blob = splitSections(deviceSections(await recorded.source.deviceState())).sections;
    const { genuine } = recorded;
    expect(genuine.hasDescription).toBe(true);
    expect(genuine.sections.length).toBeGreaterThan(10);
    const text = (name: string, body: Buffer): string =>
      `${name} ${createHash('sha256').update(body).digest('hex')}`;
    const differing = genuine.sections
      .filter(({ name, body }, i) => text(name, body) !== text(blob[i]!.name, blob[i]!.body))
      .map(({ name }) => name);
    expect(blob.map(({ name }) => name)).toEqual(genuine.sections.map(({ name }) => name));
    // The clock is read anew for each save, so it differs when a second has begun in between.
    expect(differing.filter((name) => name !== 'mc146818rtc')).toEqual(['globalstate']);
    // The same sections are found with the description and without it.
    expect(splitSections(genuine.deviceBytes).sections.map(({ bytes }) => bytes.length)).toEqual(
      genuine.sections.map(({ bytes }) => bytes.length),
    );
  });

  it('restored into a new QEMU, goes on', async () => {
    const progress: number[] = [];
    const result = await restoreCheckpoint(recorded.source, {
      ...PLAIN,
      onProgress: (done, total) => progress.push(done / total),
    });
    const machine = await adopt(dir, result.pid);
    expect(result).toMatchObject({ vmAddress: machine.address, running: true });
    expect(progress.at(-1)).toBe(1);
    const tick = await machine.waitForTick(lastTick + 2);
    expect(tick.lines).toBe(tick.tick);
    expect((await machine.guest('lab sum', 120_000)).trim()).toBe(checksum);
  });

  it('restored stopped, holds every byte of memory as recorded, and starts when told to', async () => {
    const result = await restoreCheckpoint(recorded.source, { ...PLAIN, paused: true });
    const machine = await adopt(dir, result.pid);
    expect(result.running).toBe(false);
    expect(await machine.qmp.status()).toBe('paused');
    expect(differingPages(new Map(recorded.memory), await groundTruth(machine))).toEqual([]);
    await machine.qmp.command('cont');
    await machine.waitForProgress();
  });

  it('restored into a QEMU that waits for it, goes on or stays stopped', async () => {
    for (const paused of [false, true]) {
      const target = `unix:${join(dir, 'incoming')}`;
      const machine = await waiting(dir, version, ['-incoming', target]);
      const socketPath = paused ? join(dir, 'qmp.sock') : undefined;
      const result = await restoreCheckpoint(recorded.source, {
        ...PLAIN,
        target,
        paused,
        ...(socketPath === undefined ? {} : { socketPath }),
      });
      expect(result).toMatchObject({ pid: machine.pid, running: !paused });
      expect(await machine.qmp.status()).toBe(paused ? 'paused' : 'running');
      if (paused) await machine.qmp.command('cont');
      await machine.waitForProgress();
      await machine.kill();
    }
  });

  it('exported to a file, is loaded by QEMU itself', async () => {
    const path = join(dir, 'export.mig');
    const file = createWriteStream(path);
    await exportCheckpoint(recorded.source, 'qemu', file);
    file.end();
    await once(file, 'close');
    const machine = await waiting(dir, version, ['-incoming', `exec:cat ${path}`]);
    await machine.waitForProgress();
    expect((await machine.guest('lab sum', 120_000)).trim()).toBe(checksum);
  });

  it.each([0, 40 << 20])('never runs when it turns out to be damaged after %i bytes', async (bytes) => {
    const restoring = restoreCheckpoint(damaged(recorded.source, bytes), PLAIN);
    await expect(restoring).rejects.toMatchObject({ code: 'REPO_DAMAGED' });
    expect(qemuProcessesOf(dir)).toEqual([]);
    expect(existsSync(join(dir, 'qmp.sock'))).toBe(false);
    expect(readdirSync(process.env.CAIRN_RUNTIME_DIR!)).toEqual([]);
  });

  it('says what failed on our side, not that QEMU ended for want of a stream', async () => {
    const missing = new CheckpointError('ZSTD_MISSING', 'no zstd here');
    await expect(restoreCheckpoint(damaged(recorded.source, 40 << 20, missing), PLAIN)).rejects.toMatchObject(
      {
        code: 'ZSTD_MISSING',
        message: 'no zstd here',
      },
    );
    expect(qemuProcessesOf(dir)).toEqual([]);
  });

  it('never runs in a waiting QEMU when it turns out to be damaged', async () => {
    const target = `unix:${join(dir, 'incoming')}`;
    const machine = await waiting(dir, version, ['-incoming', target]);
    const diary = machine.diary();
    const restoring = restoreCheckpoint(damaged(recorded.source, 40 << 20), { ...PLAIN, target });
    await expect(restoring).rejects.toMatchObject({ code: 'REPO_DAMAGED' });
    for (let i = 0; i < 200 && machine.isAlive(); i++) await new Promise((wake) => setTimeout(wake, 10));
    expect(machine.isAlive()).toBe(false);
    expect(machine.diary()).toBe(diary);
  });

  it('leaves nothing behind when it is interrupted', async () => {
    const abort = new AbortController();
    const restoring = restoreCheckpoint(recorded.source, {
      ...PLAIN,
      signal: abort.signal,
      onProgress: (done) => {
        if (done > 40 << 20) abort.abort();
      },
    });
    await expect(restoring).rejects.toMatchObject({ code: 'INTERRUPTED' });
    expect(qemuProcessesOf(dir)).toEqual([]);
  });

  it('says what QEMU says when the new machine does not fit', async () => {
    const restoring = restoreCheckpoint(recorded.source, { ...PLAIN, setArgs: ['-m=256'] });
    await expect(restoring).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringMatching(/pc\.ram|Size mismatch/),
    });
    expect(qemuProcessesOf(dir)).toEqual([]);
  });

  it('says so when the program is not there', async () => {
    const restoring = restoreCheckpoint(recorded.source, { ...PLAIN, program: '/nonexistent/qemu' });
    await expect(restoring).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
  });

  it('does not take the sockets of a VM that lives', async () => {
    const machine = await waiting(dir, version, []);
    await expect(restoreCheckpoint(recorded.source, PLAIN)).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
      message: expect.stringContaining('qmp.sock'),
    });
    const other = { ...PLAIN, socketPath: join(dir, 'other.sock') };
    await expect(restoreCheckpoint(recorded.source, other)).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
      message: expect.stringMatching(/agent\.sock|harness\.sock/),
    });
    expect(machine.isAlive()).toBe(true);
  });

  /** A QEMU like the recorded one, in the same folder. */
  async function waiting(
    folder: string,
    qemu: QemuVersion,
    extraArgs: readonly string[],
  ): Promise<LabMachine> {
    const machine = await LabMachine.start({
      name: 'waiting',
      dir: folder,
      qemu,
      memoryMib: 512,
      devices: ['net', 'balloon', 'vga'],
      noWait: true,
      extraArgs,
    });
    alive.push(machine);
    return machine;
  }
});

describe('a checkpoint of a QEMU 7.2 restored into QEMU 10.0', () => {
  it('goes on, with the machine type it had', async () => {
    const origin = await LabMachine.start({ name: 'upgrade', smp: 2, devices: ['net', 'balloon'] });
    const { source } = await record(origin);
    const lastTick = origin.lastTick();
    await origin.kill();
    const { path, firmwareArgs } = qemuProgram('10.0');
    const folders = firmwareArgs.filter((argument) => argument !== '-L');
    const result = await restoreCheckpoint(source, {
      ...PLAIN,
      program: path,
      setArgs: folders.map((folder, i) => `-L#${i + 1}=${folder}`),
    });
    const machine = await adopt(origin.dir, result.pid);
    await machine.waitForTick(lastTick + 2);
    expect(await machine.qmp.command('query-version')).toMatchObject({ qemu: { major: 10 } });
    expect(await machine.qmp.command('qom-get', { path: '/machine', property: 'type' })).toBe(
      'pc-i440fx-7.2-machine',
    );
  });
});

describe('the disk of a restored VM', () => {
  // The fsync reaches QEMU as a flush: what is written then outlives it.
  const write = (text: string): string =>
    `printf '%-511s\\n' ${text} | dd of=/dev/vda bs=512 seek=100 conv=notrunc,fsync 2>/dev/null`;
  const readNote = 'dd if=/dev/vda bs=512 skip=100 count=1 iflag=direct 2>/dev/null';
  const hashOf = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

  async function checkpointed(
    mode: 'internal' | 'external',
  ): Promise<{ dir: string; disk: string; source: CheckpointSource }> {
    const machine = await LabMachine.start({ name: `disk-${mode}`, devices: ['disk'] });
    const disk = join(machine.dir, 'disk.qcow2');
    await machine.guest(write('before'));
    const { source } = await record(machine, async () => [await snapshot(machine, disk, mode, 'one')]);
    await machine.qmp.command('cont');
    await machine.guest(write('after'));
    await machine.kill();
    return { dir: machine.dir, disk, source };
  }

  async function snapshot(
    machine: LabMachine,
    path: string,
    mode: 'internal' | 'external',
    name: string,
  ): Promise<DiskSnapshot> {
    if (mode === 'internal') {
      await machine.qmp.command('blockdev-snapshot-internal-sync', { device: 'disk0', name });
      return internalRecord({ diskId: 'disk0', path, snapshotName: name });
    }
    const overlayPath = join(machine.dir, `${name}.qcow2`);
    await machine.qmp.command('blockdev-snapshot-sync', {
      device: 'disk0',
      'snapshot-file': overlayPath,
      format: 'qcow2',
    });
    return externalRecord({ diskId: 'disk0', path, overlayPath });
  }

  it('goes back to an internal snapshot', async () => {
    const { dir, source } = await checkpointed('internal');
    const { pid } = await restoreCheckpoint(source, PLAIN);
    const machine = await adopt(dir, pid);
    expect((await machine.guest(readNote)).trim()).toBe('before');
    await machine.guest(write('again'));
    expect((await machine.guest(readNote)).trim()).toBe('again');
  });

  it('stays as it is when that is asked for, and when the memory is damaged', async () => {
    const { dir, disk, source } = await checkpointed('internal');
    const before = hashOf(disk);
    const restoring = restoreCheckpoint(damaged(source, 100 << 20), PLAIN);
    await expect(restoring).rejects.toMatchObject({ code: 'REPO_DAMAGED' });
    expect(hashOf(disk)).toBe(before);
    const { pid } = await restoreCheckpoint(source, { ...PLAIN, keepDisks: true });
    const machine = await adopt(dir, pid);
    expect((await machine.guest(readNote)).trim()).toBe('after');
  });

  it('is refused when its snapshot is gone or when a VM has it open', async () => {
    const { dir, disk, source } = await checkpointed('internal');
    const gone = {
      ...source,
      disks: [internalRecord({ diskId: 'disk0', path: disk, snapshotName: 'never' })],
    };
    await expect(restoreCheckpoint(gone, PLAIN)).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining('never'),
    });
    const other = await LabMachine.start({
      name: 'other',
      devices: [],
      noWait: true,
      extraArgs: ['-drive', `file=${disk},if=none,id=d,format=qcow2`, '-device', 'virtio-blk-pci,drive=d'],
    });
    alive.push(other);
    const before = hashOf(disk);
    for (const keepDisks of [false, true]) {
      await expect(restoreCheckpoint(source, { ...PLAIN, keepDisks })).rejects.toMatchObject({
        code: 'RESTORE_TARGET_BUSY',
      });
    }
    expect(hashOf(disk)).toBe(before);
    expect(qemuProcessesOf(dir)).toEqual([String(other.pid)]);
  });

  it('stands on a frozen image, which is never written', async () => {
    const { dir, disk, source } = await checkpointed('external');
    const frozen = hashOf(disk);
    for (const attempt of ['', '-2']) {
      const { pid } = await restoreCheckpoint(source, PLAIN);
      const machine = await adopt(dir, pid);
      expect((await machine.guest(readNote)).trim()).toBe('before');
      await machine.guest(write('again'));
      expect(hashOf(disk)).toBe(frozen);
      expect(existsSync(`${disk}.cairn-restore-c0ffee01${attempt}.qcow2`)).toBe(true);
      await machine.kill();
    }
    const restoring = restoreCheckpoint(damaged(source, 100 << 20), PLAIN);
    await expect(restoring).rejects.toMatchObject({ code: 'REPO_DAMAGED' });
    expect(existsSync(`${disk}.cairn-restore-c0ffee01-3.qcow2`)).toBe(false);
  });

  it('stands on an overlay that an earlier checkpoint had frozen it into', async () => {
    const machine = await LabMachine.start({ name: 'chain', devices: ['disk'] });
    const disk = join(machine.dir, 'disk.qcow2');
    await machine.guest(write('first'));
    await machine.qmp.command('stop');
    const first = await snapshot(machine, disk, 'external', 'first');
    await machine.qmp.command('cont');
    await machine.guest(write('second'));
    const { source } = await record(machine, async () => [
      await snapshot(machine, externalSnapshot(first).overlayPath, 'external', 'second'),
    ]);
    await machine.qmp.command('cont');
    await machine.guest(write('third'));
    await machine.kill();
    const { pid } = await restoreCheckpoint(source, PLAIN);
    const restored = await adopt(machine.dir, pid);
    expect((await restored.guest(readNote)).trim()).toBe('second');
  });
});
