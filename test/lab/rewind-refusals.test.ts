import { rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, CairnProcess, isSummary } from './support/cairn-cli.js';
import {
  checkpoint,
  differing,
  goOn,
  optionsOf,
  refusal,
  rewound,
  type RewindOptions,
} from './support/rewinding.js';

describe.each(['7.2', '10.0'] as const)('a rewind of QEMU %s is refused, and the guest runs on', (qemu) => {
  let machine: LabMachine;
  let options: RewindOptions;
  let id = '';
  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'rewind-refused',
      memoryMib: 104,
      qemu,
      uuid: '6f1e9a5e-5c0f-4f49-9d6c-1f4f2b1a7a01',
      devices: ['disk', 'balloon'],
      extraArgs: ['-no-shutdown'],
    });
    options = optionsOf(machine);
    await cairn(['init', '--repo', options.repo], options);
    id = String((await checkpoint(machine)).checkpoint_id);
  });
  afterAll(() => machine.destroy());

  /** Nothing was touched. */
  const isUntouched = async (): Promise<void> => {
    const tick = machine.lastTick();
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForTick(tick + 2);
  };
  const capability = (name: string, state: boolean) =>
    machine.qmp.command('migrate-set-capabilities', { capabilities: [{ capability: name, state }] });

  it.each(['multifd', 'x-ignore-shared', ...(qemu === '10.0' ? ['mapped-ram'] : [])])(
    'while the migration capability %s is on',
    async (name) => {
      await capability(name, true);
      expect(await refusal(machine, id)).toMatchObject({
        code: 'REWIND_REFUSED',
        exit_code: 22,
        detail: { reason: 'MIGRATION_CAPABILITY', capabilities: [name] },
      });
      await isUntouched();
      await capability(name, false);
    },
  );

  it('while a migration is under way', async () => {
    await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 4096 });
    await machine.qmp.command('migrate', { uri: 'exec:cat >/dev/null' });
    await sleep(300);
    expect(await refusal(machine, id)).toMatchObject({
      code: 'VM_UNSUPPORTED',
      detail: { hazard: 'MIGRATION_ACTIVE' },
    });
    await machine.qmp.command('migrate_cancel');
    await isUntouched();
    while (((await machine.qmp.command('query-migrate', {})) as { status?: string }).status !== 'cancelled')
      await sleep(20);
  });

  it('while a job is at work on a disk', async () => {
    const target = join(machine.dir, 'backup.qcow2');
    await machine.qmp.command('drive-backup', {
      ...{ 'job-id': 'backup', device: 'disk0', sync: 'full', target, format: 'qcow2', speed: 1 },
    });
    expect(await refusal(machine, id)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'BLOCK_JOB' },
    });
    await machine.qmp.command('block-job-cancel', { device: 'backup', force: true });
    while (((await machine.qmp.command('query-block-jobs', {})) as unknown[]).length > 0) await sleep(20);
    await isUntouched();
  });

  it('while a disk has a dirty bitmap', async () => {
    await machine.qmp.command('block-dirty-bitmap-add', { node: 'disk0', name: 'since' });
    expect(await refusal(machine, id)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'DISK_BITMAPS', disk: 'disk0' },
    });
    await machine.qmp.command('block-dirty-bitmap-remove', { node: 'disk0', name: 'since' });
    await isUntouched();
  });

  it('to a checkpoint without the disk, unless the disk may stay as it is', async () => {
    const { checkpoint_id: bare } = await checkpoint(machine, '--memory-only');
    expect(await refusal(machine, bare)).toMatchObject({
      code: 'DISK_NOT_COVERED',
      detail: { disk: 'disk0' },
    });
    await isUntouched();
    expect(await rewound(machine, bare, '--keep-disks')).toMatchObject({ disks: [], running: true });
    await goOn(machine);
  });

  it('to a checkpoint whose disk snapshot is gone', async () => {
    const { checkpoint_id: other } = await checkpoint(machine);
    await machine.qmp.command('blockdev-snapshot-delete-internal-sync', {
      device: 'disk0',
      name: `cairn-${String(other)}`,
    });
    expect(await refusal(machine, other)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'DISK_SNAPSHOT_GONE' },
    });
    await isUntouched();
  });

  it('when it is not known what was written since the last checkpoint; --undo takes one first', async () => {
    const runtime = join(machine.dir, 'runtime');
    for (const name of await readdir(runtime)) if (name.startsWith('ledger-')) rmSync(join(runtime, name));
    expect(await refusal(machine, id)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'UNTRACKED' },
    });
    await isUntouched();
    await rewound(machine, id, '--undo', '--paused');
    expect(await differing(machine, id)).toEqual([]);
    await goOn(machine);
  });

  it('to a checkpoint that is not of its chain', async () => {
    expect(await refusal(machine, '0123456789abcdef')).toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
    expect(await refusal(machine, id, '--name', 'other')).toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
    await isUntouched();
  });

  it('while a watcher has it', async () => {
    const watch = new CairnProcess(
      ['watch', machine.address, '--repo', options.repo, '--every', '30'],
      options,
    );
    await watch.message(isSummary);
    expect(await refusal(machine, id)).toMatchObject({ code: 'VM_BUSY' });
    watch.child.kill('SIGTERM');
    await watch.ended;
    await isUntouched();
  });

  it('with a device that was plugged in since', async () => {
    await machine.qmp.command('device_add', { driver: 'virtio-rng-pci', id: 'came' });
    expect(await refusal(machine, id)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'DEVICES_CHANGED', gone: [] },
    });
    await isUntouched();
  });

  it('when the guest has shut down', async () => {
    await machine.guest('poweroff -f &').catch(() => undefined);
    while ((await machine.qmp.status()) !== 'shutdown') await sleep(50);
    expect(await refusal(machine, id)).toMatchObject({ code: 'VM_STATE', detail: { status: 'shutdown' } });
  });

  it('to a checkpoint of another start of the same VM', async () => {
    const { dir } = machine;
    await machine.kill();
    machine = await LabMachine.start({
      name: 'rewind-refused',
      memoryMib: 104,
      qemu,
      uuid: '6f1e9a5e-5c0f-4f49-9d6c-1f4f2b1a7a01',
      devices: ['disk', 'balloon'],
      dir,
    });
    expect(await refusal(machine, id)).toMatchObject({
      code: 'REWIND_REFUSED',
      detail: { reason: 'OTHER_START' },
    });
    await isUntouched();
  });
});
