/** What a domain may have beside memory, CPU and qcow2: each works, seen on a real guest, or is refused before a pause. */

import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { extendPcr, readPcr } from './support/guest-tpm.js';
import { LabDomain, TPM_XML, whyNoLibvirt, whyNoTpm } from './libvirt-domain.js';
import type { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, runCairn, type CliMessage } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import { PauseHold, differingFromStored } from './support/oracle.js';

const reason = whyNoLibvirt();
if (reason !== '') process.stderr.write(`skipped: hardware of libvirt's domains: ${reason}\n`);
const describeWithLibvirt = reason === '' ? describe : describe.skip;
const noTpm = reason === '' ? whyNoTpm() : reason;
const hasTpm = noTpm === '';
if (!hasTpm) process.stderr.write(`skipped: TPM: ${noTpm}\n`);
const itWithTpm = hasTpm ? it : it.skip;

const NUMA = `<maxMemory slots='4' unit='MiB'>1024</maxMemory><memory unit='MiB'>320</memory><vcpu>2</vcpu>
  <cpu><numa>
    <cell id='0' cpus='0' memory='128' unit='MiB'/><cell id='1' cpus='1' memory='128' unit='MiB'/>
  </numa></cpu>`;
const DIMM = "<memory model='dimm'><target><size unit='MiB'>64</size><node>1</node></target></memory>";
const VIRTIO_MEM = `<memory model='virtio-mem'><target>
  <size unit='MiB'>64</size><node>0</node><block unit='MiB'>2</block><requested unit='MiB'>16</requested>
</target></memory>`;

/** A checkpoint, with the pages in which it differs from the truth. */
async function proven(
  domain: LabDomain,
  repo: string,
  ...args: readonly string[]
): Promise<{ readonly summary: CliMessage; readonly differing: readonly string[] }> {
  const hold = new PauseHold(domain.dir);
  const taking = new CairnProcess(
    ['checkpoint', domain.address, '--repo', repo, '--hook', hold.command, ...args],
    domain.cli,
  );
  await hold.reached(taking);
  const truth = await domain.groundTruth();
  hold.release();
  const summary = await taking.message(isSummary);
  await taking.ended;
  return {
    summary,
    differing: await differingFromStored(truth, repo, String(summary.checkpoint_id)),
  };
}

describeWithLibvirt('a domain with two NUMA nodes, a memory device and a TPM', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  let repo = '';
  let id = '';
  let pcr = '';
  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-numa-${process.pid}`, {
      domainXml: NUMA,
      devicesXml: DIMM + (hasTpm ? TPM_XML : ''),
    });
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    machine = await domain.start();
    await machine.guest('lab fill 16');
    await machine.guest(gentleLoad(8));
    if (hasTpm) {
      await extendPcr(machine);
      pcr = await readPcr(machine);
    }
  }, 300_000);
  afterAll(() => domain.remove());

  it('is stored exactly, every region of it', async () => {
    for (const kind of ['base', 'incremental']) {
      const { summary, differing } = await proven(domain, repo);
      expect(summary).toMatchObject({ kind, tracker: 'pagemap-scan' });
      expect(differing).toEqual([]);
      id = String(summary.checkpoint_id);
    }
    const report = (await runCairn(['doctor', domain.address], domain.cli)).messages.at(-1);
    const regions = (report?.regions as { readonly id: string }[]).map((region) => region.id);
    expect(regions).toEqual(expect.arrayContaining(['ram-node0', 'ram-node1', 'memdimm0']));
  }, 120_000);

  it('is refused once it has virtio-mem', async () => {
    const path = join(domain.dir, 'virtio-mem.xml');
    writeFileSync(path, VIRTIO_MEM);
    await domain.virsh('attach-device', domain.name, path, '--live');
    const doctor = await runCairn(['doctor', domain.address], domain.cli);
    expect(doctor.exitCode).toBe(22);
    expect(doctor.messages.at(-1)).toMatchObject({
      hazards: [expect.objectContaining({ code: 'MEMORY_HOTPLUG', effect: 'refuse' })],
    });
    const refused = await runCairn(['checkpoint', domain.address, '--repo', repo], domain.cli);
    expect(refused.messages.at(-1)).toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(await domain.state()).toBe('running');
  });

  describe('restored', () => {
    let again: LabMachine;
    beforeAll(async () => {
      if (hasTpm) await extendPcr(machine);
      machine.qmp.close();
      await domain.stop();
      const bytes = statSync(join(domain.dir, 'diary.log')).size;
      await cairn(['restore', id, '--repo', repo], domain.cli);
      again = await domain.adopt();
      await again.waitForTick(1, 60_000, bytes);
    }, 120_000);
    afterAll(() => again.qmp.close());

    it('goes on', async () => {
      await again.waitForProgress();
    });

    itWithTpm('has its TPM as it was, not as it was later', async () => {
      expect(pcr).toMatch(/^[0-9A-F]{64}/);
      expect(await readPcr(again)).toBe(pcr);
    });
  });
});

describeWithLibvirt('a domain whose memory another process shares (vhost-user)', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  let backend: ChildProcess;
  let folder = '';
  let repo = '';
  beforeAll(async () => {
    // Where the user of QEMU may connect.
    folder = mkdtempSync(join(tmpdir(), 'cairn-vhost-'));
    chmodSync(folder, 0o777);
    const image = join(folder, 'disk.raw');
    writeFileSync(image, '');
    truncateSync(image, 64 << 20);
    const socket = join(folder, 'blk.sock');
    backend = spawn('sh', [
      '-c',
      `umask 0; exec qemu-storage-daemon --blockdev driver=file,node-name=file,filename=${image} ` +
        `--export type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=${socket},writable=on`,
    ]);
    while (!existsSync(socket)) await sleep(20);
    domain = await LabDomain.define(`cairn-vhost-${process.pid}`, {
      domainXml:
        "<memory unit='MiB'>128</memory><vcpu>1</vcpu>" +
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
      devicesXml:
        "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>" +
        `<source type='unix' path='${socket}'/><target dev='vdb' bus='virtio'/></disk>`,
    });
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    machine = await domain.start();
  }, 300_000);
  afterAll(async () => {
    machine.qmp.close();
    try {
      await domain.remove();
    } finally {
      backend.kill();
      rmSync(folder, { recursive: true });
    }
  });

  it('is compared as a whole, since no tracker sees what the other process writes', async () => {
    // Every read of the disk is a write of the other process to the guest's memory.
    await machine.guest(
      '(while :; do dd if=/dev/vdb of=/dev/null bs=64k count=64 iflag=direct; done >/dev/null 2>&1 &)',
    );
    const doctor = (await runCairn(['doctor', domain.address], domain.cli)).messages.at(-1);
    expect(doctor).toMatchObject({ chosen: 'compare' });
    const hazards = (doctor?.hazards as { readonly code: string }[]).map(({ code }) => code);
    expect(hazards).toEqual(expect.arrayContaining(['VHOST_USER', 'SHARED_MEMORY']));
    for (let i = 0; i < 2; i++) {
      const { summary, differing } = await proven(domain, repo, '--memory-only');
      expect(summary).toMatchObject({ tracker: 'compare' });
      expect(differing).toEqual([]);
    }
  }, 120_000);

  it.each(['pagemap-scan', 'qmp-stream'])('is refused the tracker %s', async (tracker) => {
    const args = ['checkpoint', domain.address, '--repo', repo, '--memory-only', '--tracker', tracker];
    expect((await runCairn(args, domain.cli)).messages.at(-1)).toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
  });

  it('is refused without a word about the disk that the other process serves', async () => {
    const refused = await runCairn(['checkpoint', domain.address, '--repo', repo], domain.cli);
    expect(refused.messages.at(-1)).toMatchObject({ code: 'DISK_NOT_COVERED', detail: { disks: ['vdb'] } });
    expect(await domain.state()).toBe('running');
  });
});

describeWithLibvirt('a domain with an NVMe disk', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  let repo = '';
  beforeAll(async () => {
    // libvirt 9.0 has no bus for it.
    domain = await LabDomain.define(`cairn-nvme-${process.pid}`, {
      domainXml: "<memory unit='MiB'>128</memory><vcpu>1</vcpu>",
      qemuArgs: [
        ...['-blockdev', 'driver=null-co,node-name=nvme0,size=16777216,read-zeroes=on'],
        ...['-device', 'nvme,serial=1,drive=nvme0,addr=0x1e'],
      ],
    });
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    machine = await domain.start();
  }, 300_000);
  afterAll(async () => {
    machine.qmp.close();
    await domain.remove();
  });

  it('is refused by what QEMU says against it, with nothing paused', async () => {
    await machine.guest('dd if=/dev/nvme0n1 of=/dev/null bs=64k count=1');
    const stop = domain.listen();
    const doctor = await runCairn(['doctor', domain.address], domain.cli);
    expect(doctor.exitCode).toBe(22);
    expect(doctor.messages.at(-1)?.hazards).toContainEqual(
      expect.objectContaining({
        ...{ code: 'MIGRATION_BLOCKED', effect: 'refuse' },
        text: expect.stringContaining('nvme') as unknown,
      }),
    );
    for (const tracker of ['auto', 'compare', 'qmp-stream']) {
      const args = ['checkpoint', domain.address, '--repo', repo, '--memory-only', '--tracker', tracker];
      const { exitCode, messages } = await runCairn(args, domain.cli);
      expect({ exitCode, error: messages.at(-1) }).toMatchObject({
        exitCode: 22,
        error: {
          code: 'VM_UNSUPPORTED',
          message: expect.stringContaining('nvme') as unknown,
          detail: { hazard: 'MIGRATION_BLOCKED' },
        },
      });
    }
    await machine.waitForProgress();
    expect(await stop()).toEqual([]);
    expect(await domain.state()).toBe('running');
    expect(machine.qmp.events).not.toContain('STOP');
  }, 120_000);
});

describeWithLibvirt('a domain whose disk was given limits while it ran', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-limits-${process.pid}`, {
      domainXml: "<memory unit='MiB'>128</memory><vcpu>1</vcpu>",
    });
    machine = await domain.start();
  }, 300_000);
  afterAll(async () => {
    machine.qmp.close();
    await domain.remove();
  });

  it('comes back with them, by its live XML', async () => {
    const repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    const limits = ['--total-iops-sec', '70', '--read-bytes-sec', '65536'];
    await domain.virsh('blkdeviotune', domain.name, 'vda', '--live', ...limits);
    const seen = (): Promise<string> => domain.virsh('blkdeviotune', domain.name, 'vda', '--live');
    const before = await seen();
    expect(before).toMatch(/total_iops_sec *: *70\b/);
    const { checkpoint_id: id } = await cairn(['checkpoint', domain.address, '--repo', repo], domain.cli);
    machine.qmp.close();
    await domain.stop();
    const bytes = statSync(join(domain.dir, 'diary.log')).size;
    await cairn(['restore', String(id), '--repo', repo], domain.cli);
    machine = await domain.adopt();
    await machine.waitForTick(1, 60_000, bytes);
    expect(await seen()).toBe(before);
    const [drive] = (await machine.qmp.command('query-block')) as { inserted: Record<string, unknown> }[];
    expect(drive?.inserted).toMatchObject({ iops: 70, bps_rd: 65_536 });
  }, 120_000);
});
