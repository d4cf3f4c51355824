import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { chmodSync, copyFileSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import { LabDomain, whyNoLibvirt, whyNoSession } from './libvirt-domain.js';
import type { LabMachine } from './machine.js';
import {
  CairnProcess,
  cairn,
  isSummary,
  runCairn,
  type CliMessage,
  type CliOptions,
} from './support/cairn-cli.js';
import { GENTLE_DISK_LOAD, gentleLoad } from './support/guest-loads.js';
import { PauseHold, differingFromStored } from './support/oracle.js';
import { IN_PAUSE, StoppedCairn, isRunEvent, pauseMarkers, storedObjects } from './support/stopped-cairn.js';

const INCREMENTS = 3;
const MAC = '52:54:00:01:02:03';
const NETWORK = `<interface type='user'><mac address='${MAC}'/><model type='virtio'/></interface>`;
const reason = whyNoLibvirt();
if (reason !== '') process.stderr.write(`skipped: VMs of libvirt: ${reason}\n`);
const describeWithLibvirt = reason === '' ? describe : describe.skip;
const sessionReason = reason || whyNoSession();
if (sessionReason !== reason) process.stderr.write(`skipped: qemu:///session: ${sessionReason}\n`);
const describeWithSession = sessionReason === '' ? describe : describe.skip;

describeWithLibvirt('a domain that libvirt owns', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  let options: CliOptions;
  let repo = '';
  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-lab-${process.pid}`, { devicesXml: NETWORK });
    options = domain.cli;
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    machine = await domain.start();
    await machine.guest('lab fill 24');
    await machine.guest(gentleLoad(16));
    await machine.guest(GENTLE_DISK_LOAD);
  }, 300_000);
  afterAll(async () => {
    machine.qmp.close();
    await domain.remove();
  });

  /** A checkpoint that is held against the truth. @returns its summary */
  async function expectExact(): Promise<CliMessage> {
    const hold = new PauseHold(domain.dir);
    const taking = new CairnProcess(
      ['checkpoint', domain.address, '--repo', repo, '--hook', hold.command],
      options,
    );
    await hold.reached(taking);
    expect(await domain.state()).toBe('paused');
    const truth = await domain.groundTruth();
    hold.release();
    const summary = await taking.message(isSummary);
    expect(await taking.ended).toMatchObject({ exitCode: 0 });
    expect(await domain.state()).toBe('running');
    expect(await differingFromStored(truth, repo, String(summary.checkpoint_id))).toEqual([]);
    return summary;
  }

  it(`has exactly the memory that a base and ${INCREMENTS} increments hold`, async () => {
    for (let i = 0; i <= INCREMENTS; i++) {
      expect(await expectExact()).toMatchObject({
        kind: i === 0 ? 'base' : 'incremental',
        tracker: 'pagemap-scan',
        compare_reason: '',
      });
    }
    await machine.waitForProgress();
  }, 300_000);

  it('is found by name, UUID, id and with a connection, and is the same VM each time', async () => {
    const uuid = await domain.virsh('domuuid', domain.name);
    const id = await domain.virsh('domid', domain.name);
    for (const name of [uuid, id, `qemu:///system#${domain.name}`]) {
      expect(
        await cairn(['checkpoint', `libvirt:${name}`, '--repo', repo, '--memory-only'], options),
      ).toMatchObject({ kind: 'incremental', compare_reason: '', vm_name: domain.name });
    }
  });

  it('is suspended and resumed once, to everybody who listens to libvirt', async () => {
    const stop = domain.listen();
    await sleep(300);
    await cairn(['checkpoint', domain.address, '--repo', repo, '--memory-only'], options);
    expect(await stop()).toEqual(['Suspended', 'Resumed']);
  });

  it('stays paused when virsh has paused it', async () => {
    await domain.virsh('suspend', domain.name);
    const summary = await cairn(['checkpoint', domain.address, '--repo', repo, '--memory-only'], options);
    expect(summary).toMatchObject({ pause_ms: 0 });
    expect(await domain.state()).toBe('paused');
    const truth = await domain.groundTruth();
    expect(await differingFromStored(truth, repo, String(summary.checkpoint_id))).toEqual([]);
    await domain.virsh('resume', domain.name);
    await machine.waitForProgress();
  });

  it('is left alone while libvirt is busy with it', async () => {
    const backup = join(domain.dir, 'backup.xml');
    writeFileSync(
      backup,
      `<domainbackup mode='pull'><server transport='unix' socket='${join(domain.dir, 'nbd.sock')}'/></domainbackup>`,
    );
    await domain.virsh('backup-begin', domain.name, backup);
    try {
      const refused = await runCairn(
        ['checkpoint', domain.address, '--repo', repo, '--memory-only'],
        options,
      );
      expect(refused.messages.at(-1)).toMatchObject({
        message_type: 'error',
        code: 'VM_STATE',
        retryable: true,
        detail: { job: 'backup' },
      });
      expect(await domain.state()).toBe('running');
      const waiting = new CairnProcess(
        ['checkpoint', domain.address, '--repo', repo, '--memory-only', '--wait-job', '60'],
        options,
      );
      await sleep(1500);
      expect(waiting.isOver).toBe(false);
      expect(waiting.messages.filter(isSummary)).toEqual([]);
      await domain.virsh('domjobabort', domain.name);
      expect(await waiting.ended).toMatchObject({ exitCode: 0 });
    } finally {
      await domain.virsh('domjobabort', domain.name).catch(() => '');
    }
  });

  it('runs again, and virsh says so, when cairn is killed in the pause', async () => {
    const hold = new PauseHold(domain.dir);
    const doomed = new CairnProcess(
      ['checkpoint', domain.address, '--repo', repo, '--memory-only', '--hook', hold.command],
      options,
    );
    await hold.reached(doomed);
    expect(await domain.state()).toBe('paused');
    doomed.child.kill('SIGKILL');
    while ((await domain.state()) !== 'running') await sleep(50);
    await machine.waitForProgress();
    // The hook's shell outlives Cairn and holds its pipes.
    hold.release();
    await doomed.ended;
  }, 60_000);

  it.each(IN_PAUSE)(
    'loses its pause, also to virsh, when cairn hangs in it at %s, and the next checkpoint is exact',
    async (point) => {
      // What the Cairns that were killed before have left goes with the next one.
      await cairn(['prune', '--repo', repo], options);
      const before = storedObjects(repo);
      const hung = await StoppedCairn.at(
        point,
        ['checkpoint', domain.address, '--repo', repo, '--memory-only', '--pause-limit', '5s'],
        options,
      );
      // Its answer comes after the events of what was before.
      await machine.qmp.status();
      const seen = machine.qmp.events.length;
      expect(await domain.state()).toBe('paused');
      await machine.waitForProgress();
      expect(await domain.state()).toBe('running');
      expect(hung.isStopped()).toBe(true);
      const { exitCode, messages } = await hung.goOn();
      expect({ exitCode, error: messages.at(-1) }).toMatchObject({
        exitCode: 27,
        error: { code: 'PAUSE_LIMIT', detail: { endedBy: 'guard' } },
      });
      expect(storedObjects(repo)).toEqual(before);
      expect(pauseMarkers(domain.dir)).toEqual([]);
      expect(await domain.state()).toBe('running');
      // A command that was on its way when it hung gets there all the same: to write the device state, QEMU stops a VM that
      // runs for some milliseconds.
      expect(machine.qmp.events.slice(seen).filter(isRunEvent).join(' ')).toMatch(/^RESUME( STOP RESUME)?$/);
      await expectExact();
    },
    180_000,
  );

  it('refuses what is no running domain of this host', async () => {
    const code = async (address: string): Promise<unknown> =>
      (await runCairn(['checkpoint', address, '--repo', repo], options)).messages.at(-1)?.code;
    expect(await code('libvirt:no-such-domain')).toBe('VM_ADDRESS');
    expect(await code('libvirt:qemu+ssh://elsewhere/system#web1')).toBe('VM_UNSUPPORTED');
    expect(await code('libvirt:')).toBe('VM_ADDRESS');
    expect(await code('libvirt:qemu+unix:///system?socket=/nowhere#web1')).toBe('VM_UNREACHABLE');
  });

  it('has disks that virsh and cairn snapshot in turn', async () => {
    const path = join(domain.dir, 'disk.qcow2');
    const external = ['checkpoint', domain.address, '--repo', repo, '--disks', 'external'];
    const { checkpoint_id: first } = await cairn(external, options);
    const { checkpoint_id: second } = await cairn(external, options);
    const overlay = join(domain.dir, `disk.cairn-${String(second)}.qcow2`);
    expect(await domain.diskPath()).toBe(overlay);
    expect(await domain.diskPath('--inactive')).toBe(overlay);
    await domain.virsh('snapshot-create-as', domain.name, 'mine', '--disk-only', '--no-metadata');
    await domain.virsh('blockcommit', domain.name, 'vda', '--active', '--pivot', '--wait');
    expect(await domain.diskPath()).toBe(path);
    expect(await domain.virsh('snapshot-list', domain.name)).toBe('');
    await cairn(['checkpoint', domain.address, '--repo', repo, '--disks', 'internal'], options);
    expect(await domain.diskPath()).toBe(path);
    await machine.waitForProgress();
    // The commit went into the images that the first two stand on; they are good for no restore any more.
    for (const id of [first, second]) rmSync(join(domain.dir, `disk.cairn-${String(id)}.qcow2`));
  });

  describe('restored', () => {
    let checksum = '';
    let id = '';
    let tick = 0;
    let bytes = 0;
    beforeAll(async () => {
      await machine.guest('lab stop');
      checksum = await machine.guest('lab sum');
      id = String((await cairn(['checkpoint', domain.address, '--repo', repo], options)).checkpoint_id);
      await machine.waitForProgress();
      const busy = await runCairn(['restore', id, '--repo', repo, '--to', 'libvirt'], options);
      expect(busy.messages.at(-1)).toMatchObject({ code: 'RESTORE_TARGET_BUSY' });
      expect(await domain.state()).toBe('running');
      tick = machine.lastTick();
      machine.qmp.close();
      await domain.stop();
    });
    afterEach(() => domain.stop());

    /** Goes on from the checkpoint: counter, open file, data and disk. */
    const expectToGoOn = async (name = domain.name): Promise<void> => {
      const again = await domain.adopt(name);
      try {
        const first = await again.waitForTick(1, 60_000, bytes);
        expect(first.tick).toBeLessThanOrEqual(tick);
        await again.waitForTick(first.tick + 5, 60_000, bytes);
        expect(again.ticks(bytes).every((at) => at.tick === at.lines)).toBe(true);
        expect(await again.guest('lab sum')).toBe(checksum);
        expect(await again.guest('dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct 2>&1')).toContain(
          '16+0 records in',
        );
      } finally {
        again.qmp.close();
      }
    };
    const diaryBytes = (): number => statSync(join(domain.dir, 'diary.log')).size;

    it('by cairn, straight into libvirt', async () => {
      bytes = diaryBytes();
      expect(await cairn(['restore', id, '--repo', repo, '--to', 'libvirt'], options)).toMatchObject({
        vm_address: domain.address,
        running: true,
      });
      expect(await domain.state()).toBe('running');
      await expectToGoOn();
      expect(await cairn(['checkpoint', domain.address, '--repo', repo], options)).toMatchObject({
        kind: 'incremental',
      });
    }, 180_000);

    it.each(['libvirt', 'libvirt+gzip'])(
      'by virsh restore from an exported image, %s',
      async (format) => {
        const image = join(domain.dir, `exported.${format}`);
        await cairn(['export', id, image, '--repo', repo, '--format', format], options);
        expect(await domain.virsh('save-image-dumpxml', image)).toContain(`<name>${domain.name}</name>`);
        bytes = diaryBytes();
        await domain.virsh('restore', image);
        expect(await domain.state()).toBe('running');
        await expectToGoOn();
      },
      180_000,
    );

    it('paused, byte for byte as it was', async () => {
      expect(await cairn(['restore', id, '--repo', repo, '--paused'], options)).toMatchObject({
        running: false,
      });
      expect(await domain.state()).toBe('paused');
      expect(await differingFromStored(await domain.groundTruth(), repo, id)).toEqual([]);
      bytes = diaryBytes();
      await domain.virsh('resume', domain.name);
      await expectToGoOn();
    }, 180_000);

    it('beside the original, with another name, UUID, MAC address, disk and paths', async () => {
      const name = `${domain.name}-copy`;
      const dir = join(domain.dir, 'copy');
      mkdirSync(dir);
      chmodSync(dir, 0o777);
      await cairn(['restore', id, '--repo', repo], options);
      await domain.virsh('suspend', domain.name);
      copyFileSync(join(domain.dir, 'disk.qcow2'), join(dir, 'disk.qcow2'));
      await domain.virsh('resume', domain.name);
      bytes = 0;
      try {
        const edits = [
          ...['--new-name', name, '--new-macs', '--disk', `vda=${join(dir, 'disk.qcow2')}`],
          ...['--xml-edit', `sed 's#${domain.dir}/\\([a-z]*[.]\\(sock\\|log\\)\\)#${dir}/\\1#'`],
        ];
        expect(await cairn(['restore', id, '--repo', repo, ...edits], options)).toMatchObject({
          vm_address: `libvirt:${name}`,
        });
        expect(await domain.state()).toBe('running');
        expect(await domain.virsh('domuuid', name)).not.toBe(await domain.virsh('domuuid', domain.name));
        expect(await domain.virsh('domiflist', name)).not.toContain(MAC);
        const copy = await domain.adopt(name, dir);
        const first = await copy.waitForTick(1);
        await copy.waitForTick(first.tick + 3);
        expect(await copy.guest('lab sum')).toBe(checksum);
        copy.qmp.close();
      } finally {
        await domain.stop(name);
      }
    }, 180_000);

    describe('from a frozen image', () => {
      let external = '';
      beforeAll(async () => {
        await cairn(['restore', id, '--repo', repo], options);
        const running = await domain.adopt();
        const taking = ['checkpoint', domain.address, '--repo', repo, '--disks', 'external'];
        external = String((await cairn(taking, options)).checkpoint_id);
        await running.waitForProgress();
        tick = running.lastTick();
        running.qmp.close();
        await domain.stop();
      }, 180_000);

      const expectRefused = async (checkpoint: string): Promise<void> => {
        const { exitCode, messages } = await runCairn(['restore', checkpoint, '--repo', repo], options);
        expect(exitCode).toBe(22);
        expect(messages.at(-1)).toMatchObject({
          code: 'DISK_CHANGED',
          detail: { path: join(domain.dir, 'disk.qcow2') },
        });
        expect(await domain.state()).toBe('shut off');
      };

      it('goes on in a new overlay, which its definition names from then on', async () => {
        bytes = diaryBytes();
        await cairn(['restore', external, '--repo', repo], options);
        const overlay = await domain.diskPath();
        expect(overlay).toBe(join(domain.dir, `disk.qcow2.cairn-restore-${external.slice(0, 8)}.qcow2`));
        expect(await domain.diskPath('--inactive')).toBe(overlay);
        await expectToGoOn();
      }, 180_000);

      it('and no older snapshot inside that image is rolled back to', () => expectRefused(id));

      it('unless somebody has committed into it since', async () => {
        // Once more from the image as it was: starting and stopping the domain has not changed it.
        await cairn(['restore', external, '--repo', repo], options);
        // Without a write there is nothing to commit, and the image stays what it was.
        const running = await domain.adopt();
        await running.guest(
          'dd if=/dev/urandom of=/dev/vda bs=4096 count=16 seek=1000 oflag=direct conv=notrunc',
        );
        running.qmp.close();
        await domain.virsh('blockcommit', domain.name, 'vda', '--active', '--pivot', '--wait');
        await domain.stop();
        await expectRefused(external);
      }, 180_000);
    });
  });
});

describeWithSession("a domain of a user's own libvirt", () => {
  let domain: LabDomain;
  beforeAll(async () => {
    // Short: the path of the monitor's socket begins with it.
    domain = await LabDomain.define(`cs-${process.pid}`, { session: true });
  }, 120_000);
  afterAll(() => domain.remove());

  it('is checkpointed and restored without root', async () => {
    const repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    const machine = await domain.start();
    const first = await cairn(['checkpoint', domain.address, '--repo', repo], domain.cli);
    expect(first).toMatchObject({ kind: 'base', tracker: 'pagemap-scan' });
    expect(await cairn(['checkpoint', domain.address, '--repo', repo], domain.cli)).toMatchObject({
      kind: 'incremental',
      compare_reason: '',
    });
    const tick = machine.lastTick();
    machine.qmp.close();
    await domain.stop();
    const bytes = statSync(join(domain.dir, 'diary.log')).size;
    expect(await cairn(['restore', 'latest', '--repo', repo], domain.cli)).toMatchObject({
      vm_address: domain.address,
      running: true,
    });
    const again = await domain.adopt();
    const seen = await again.waitForTick(1, 60_000, bytes);
    expect(seen.tick).toBeLessThanOrEqual(tick + 1);
    await again.waitForTick(seen.tick + 3, 60_000, bytes);
    again.qmp.close();
  }, 120_000);
});
