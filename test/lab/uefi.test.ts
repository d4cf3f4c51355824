/**
 * Machines with UEFI firmware, whose variables lie in a raw file that QEMU writes to: the checkpoint holds the bytes of the
 * pause, and a restore puts them back.
 */

import { execFileSync } from 'node:child_process';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabDomain, whyNoLibvirt } from './libvirt-domain.js';
import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { ensureLab, scratchDir, whyNoPackages, type QemuVersion } from './support/lab-files.js';

const CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd';
const TEMPLATE = '/usr/share/OVMF/OVMF_VARS_4M.fd';

const reason = whyNoPackages('ovmf');
if (reason !== '') process.stderr.write(`skipped: UEFI: ${reason}\n`);
const describeWithUefi = reason === '' ? describe : describe.skip;

/** As people write it, and as libvirt does. */
const FLASH: Readonly<Record<QemuVersion, (vars: string) => readonly string[]>> = {
  '7.2': (vars) => [
    ...['-drive', `if=pflash,unit=0,format=raw,readonly=on,file=${CODE}`],
    ...['-drive', `if=pflash,unit=1,format=raw,file=${vars}`],
  ],
  '10.0': (vars) => [
    ...['-blockdev', `driver=file,filename=${CODE},node-name=code-file,read-only=on`],
    ...['-blockdev', 'driver=raw,file=code-file,node-name=code,read-only=on'],
    ...['-blockdev', `driver=file,filename=${vars},node-name=vars-file`],
    ...['-blockdev', 'driver=raw,file=vars-file,node-name=vars'],
    ...['-machine', 'pc,pflash0=code,pflash1=vars'],
  ],
};

const STORE_BYTES = 540_672;
/** In the spare part of the store, which the firmware writes to when it tidies up. */
const OFFSET = 0x83000;
/** The firmware's code ends at 4 GiB, and the store ends where it begins. */
const ADDRESS = `0x${(2 ** 32 - 3_653_632 - STORE_BYTES + OFFSET).toString(16)}`;

/** The guest programs a byte of its flash, as an Intel chip has it: 0x40, the byte, 0xff to be read again. */
function program(machine: LabMachine, byte: number): Promise<string> {
  return machine.guest([0x40, byte, 0xff].map((value) => `devmem ${ADDRESS} 8 ${value}`).join(' && '));
}

async function programmed(machine: LabMachine): Promise<number> {
  return Number(await machine.guest(`devmem ${ADDRESS} 8`));
}

describeWithUefi.each(['7.2', '10.0'] as const)('a UEFI machine under QEMU %s', (qemu) => {
  let machine: LabMachine;
  let vars: string;
  let options: CliOptions & { readonly repo: string };
  let atCheckpoint: Buffer;
  let id: string;
  beforeAll(async () => {
    ensureLab();
    const dir = scratchDir('uefi');
    vars = join(dir, 'VARS.fd');
    copyFileSync(TEMPLATE, vars);
    options = { dir, repo: join(dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    machine = await LabMachine.start({
      name: 'uefi',
      qemu,
      dir,
      devices: ['disk'],
      extraArgs: FLASH[qemu](vars),
    });
  }, 300_000);
  afterAll(() => machine.destroy());

  it('is one that doctor has nothing against, and its firmware is no disk to be covered', async () => {
    const { disks, disk_problem, hazards } = await cairn(['doctor', machine.address], options);
    expect({ disk_problem, hazards }).toMatchObject({ disk_problem: '', hazards: [] });
    const found = (disks as { path: string; writable: boolean; snapshot_modes: string[] }[]).filter(
      ({ path }) => path.endsWith('.fd'),
    );
    expect(found).toEqual([
      expect.objectContaining({ path: CODE, writable: false, snapshot_modes: [] }),
      expect.objectContaining({ path: vars, writable: true, snapshot_modes: ['copy'] }),
    ]);
  });

  it('has a checkpoint taken, with no option, that holds its variables', async () => {
    await program(machine, 0x42);
    atCheckpoint = readFileSync(vars);
    expect(atCheckpoint[OFFSET]).toBe(0x42);
    const summary = await cairn(['checkpoint', machine.address, '--repo', options.repo], options);
    id = String(summary.checkpoint_id);
    const { disks } = await cairn(['show', id, '--repo', options.repo], options);
    expect(disks).toContainEqual(
      expect.objectContaining({ mode: 'copy', path: vars, size_bytes: STORE_BYTES }),
    );
    expect(readFileSync(vars).equals(atCheckpoint)).toBe(true);
  });

  it('comes back with the variables of the checkpoint, before it runs and when it has', async () => {
    await program(machine, 0x43);
    expect(readFileSync(vars)[OFFSET]).toBe(0x43);
    await machine.kill();
    // What QEMU itself would make good when the guest runs, it cannot while it is paused.
    writeFileSync(vars, Buffer.alloc(STORE_BYTES, 0x5a));
    const { pid } = await cairn(['restore', id, '--repo', options.repo, '--paused'], options);
    machine = await LabMachine.adopt('uefi', options.dir, Number(pid));
    expect(readFileSync(vars).equals(atCheckpoint)).toBe(true);
    await machine.qmp.command('cont');
    await machine.waitForProgress();
    expect(readFileSync(vars).equals(atCheckpoint)).toBe(true);
    expect(await programmed(machine)).toBe(0x42);
    await program(machine, 0x44);
    expect(readFileSync(vars)[OFFSET]).toBe(0x44);
  });

  it('finds its variables as they were when the restore fails', async () => {
    await machine.kill();
    const before = readFileSync(vars);
    const otherDisks = ['--set-arg', '-global=virtio-blk-pci.disable-modern=on'];
    const { messages } = await runCairn(['restore', id, '--repo', options.repo, ...otherDisks], options);
    expect(messages.at(-1)).toMatchObject({ code: 'RESTORE_FAILED' });
    expect(readFileSync(vars).equals(before)).toBe(true);
  });
});

const noLibvirt = reason === '' ? whyNoLibvirt() : reason;
if (noLibvirt !== '') process.stderr.write(`skipped: UEFI with libvirt: ${noLibvirt}\n`);

(noLibvirt === '' ? describe : describe.skip)('a domain with <loader> and <nvram>', () => {
  let domain: LabDomain;
  let options: CliOptions;
  const nvram = (): string => join(domain.dir, 'nvram.fd');
  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-uefi-${process.pid}`, {
      osXml: (dir) =>
        `<loader readonly='yes' type='pflash'>${CODE}</loader><nvram template='${TEMPLATE}'>${dir}/nvram.fd</nvram>`,
    });
    options = domain.cli;
  });
  afterAll(async () => {
    await domain.stop();
    await domain.virsh('undefine', domain.name, '--nvram').catch(() => '');
    await domain.remove();
  });

  it('comes back with the variables of the checkpoint', async () => {
    const repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    const machine = await domain.start();
    await program(machine, 0x42);
    const summary = await cairn(['checkpoint', domain.address, '--repo', repo], options);
    const atCheckpoint = readFileSync(nvram());
    expect(atCheckpoint[OFFSET]).toBe(0x42);
    await program(machine, 0x43);
    expect(readFileSync(nvram())[OFFSET]).toBe(0x43);
    await domain.stop();
    await cairn(['restore', String(summary.checkpoint_id), '--repo', repo, '--paused'], options);
    expect(readFileSync(nvram()).equals(atCheckpoint)).toBe(true);
    await domain.virsh('resume', domain.name);
    const again = await domain.adopt();
    await again.waitForProgress();
    expect(await programmed(again)).toBe(0x42);
    // What was kept of the disk until the domain ran is gone: libvirt's monitor has removed it.
    const image = join(domain.dir, 'disk.qcow2');
    const snapshots = execFileSync('qemu-img', ['snapshot', '-U', '-l', image], { encoding: 'utf8' });
    expect(snapshots).toContain('cairn-');
    expect(snapshots).not.toContain('cairn-before-');
  }, 400_000);
});
