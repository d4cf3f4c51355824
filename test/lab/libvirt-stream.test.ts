/** Checkpoints by a stream of memory (tracker qmp-stream) of domains that libvirt owns, beside what virsh does with them. */

import { readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabDomain, whyNoLibvirt, whyNoSession } from './libvirt-domain.js';
import type { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, runCairn, type CliMessage } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import type { QemuVersion } from './support/lab-files.js';
import { PauseHold, differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';
import {
  IN_PAUSE,
  StoppedCairn,
  childrenOf,
  isRunEvent,
  isStandingStill,
  pauseMarkers,
  storedObjects,
} from './support/stopped-cairn.js';

const INCREMENTS = 4;
const STREAM = ['--tracker', 'qmp-stream', '--memory-only'];
const RUNNING_LIMIT_MS = 30_000;
const STUCK_BYTES = 4 << 20;
const STUCK_TRIALS = 20;
/** Of an operator; libvirt sets some of its own. */
const OPERATOR_PARAMETERS = { 'max-bandwidth': 123_456_789, 'downtime-limit': 77 };

const reason = whyNoLibvirt();
if (reason !== '') process.stderr.write(`skipped: streams of libvirt's domains: ${reason}\n`);
const describeWithLibvirt = reason === '' ? describe : describe.skip;
const sessionReason = reason || whyNoSession();
if (sessionReason !== reason) process.stderr.write(`skipped: streams of qemu:///session: ${sessionReason}\n`);
const describeWithSession = sessionReason === '' ? describe : describe.skip;

/** A domain under load, its repository, and what a test asks of them. */
class Lab {
  readonly domain: LabDomain;
  readonly machine: LabMachine;
  readonly repo: string;

  private constructor(domain: LabDomain, machine: LabMachine, repo: string) {
    this.domain = domain;
    this.machine = machine;
    this.repo = repo;
  }

  static async start(domain: LabDomain): Promise<Lab> {
    const repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    const machine = await domain.start();
    await machine.guest('lab fill 24');
    await machine.guest(gentleLoad(8));
    await machine.qmp.command('migrate-set-parameters', OPERATOR_PARAMETERS);
    return new Lab(domain, machine, repo);
  }

  args(...more: readonly string[]): readonly string[] {
    return ['checkpoint', this.domain.address, '--repo', this.repo, ...more];
  }

  /** One checkpoint by a process of its own, which must be exact. */
  async expectExact(...more: readonly string[]): Promise<CliMessage> {
    const hold = new PauseHold(this.domain.dir);
    const taking = new CairnProcess(this.args(...STREAM, '--hook', hold.command, ...more), this.domain.cli);
    await hold.reached(taking);
    const truth = await processTruth(this.machine);
    hold.release();
    const summary = await taking.message(isSummary);
    expect(await taking.ended).toMatchObject({ exitCode: 0 });
    expect(summary).toMatchObject({ tracker: 'qmp-stream' });
    expect(await differingFromStored(truth, this.repo, String(summary.checkpoint_id))).toEqual([]);
    await this.expectRunning();
    return summary;
  }

  /** In the eyes of libvirt, of QEMU and of the guest. */
  async expectRunning(): Promise<void> {
    const until = Date.now() + RUNNING_LIMIT_MS;
    while ((await this.domain.state()) !== 'running' && Date.now() < until) await sleep(100);
    expect([await this.domain.state(), await this.machine.qmp.status()]).toEqual(['running', 'running']);
    await this.machine.waitForProgress();
  }

  async settings(): Promise<unknown> {
    return [
      await this.machine.qmp.command('query-migrate-capabilities'),
      await this.machine.qmp.command('query-migrate-parameters'),
    ];
  }

  async expectSettings(settings: unknown): Promise<void> {
    const until = Date.now() + RUNNING_LIMIT_MS;
    while (JSON.stringify(await this.settings()) !== JSON.stringify(settings) && Date.now() < until)
      await sleep(100);
    expect(await this.settings()).toEqual(settings);
  }

  /** Returns while memory travels. */
  async streaming(taking: CairnProcess): Promise<void> {
    while ((await this.#migration()).status !== 'active' && !taking.isOver) await sleep(1);
    expect(taking.isOver).toBe(false);
  }

  /** A base by stream that stands still while far more memory has yet to travel than lies in a socket: the stream cannot end. */
  async stuckStream(): Promise<CairnProcess> {
    for (let n = 0; n < STUCK_TRIALS; n++) {
      const taking = new CairnProcess(this.args(...STREAM, '--base'), this.domain.cli);
      while ((await this.#migration()).status !== 'active' && !taking.isOver) await sleep(1);
      taking.child.kill('SIGSTOP');
      while (!taking.isOver && !isStandingStill(taking.child.pid!)) await sleep(1);
      const { status, ram } = await this.#migration();
      if (status === 'active' && ram!.remaining > STUCK_BYTES) return taking;
      taking.child.kill('SIGCONT');
      await taking.ended;
    }
    throw new Error(`no stream of ${STUCK_TRIALS} could be stopped on its way`);
  }

  async #migration(): Promise<{ readonly status?: string; readonly ram?: { readonly remaining: number } }> {
    return (await this.machine.qmp.command('query-migrate')) as object;
  }
}

function errorOf(messages: readonly CliMessage[]): CliMessage | undefined {
  return messages.find(({ message_type }) => message_type === 'error');
}

// An emulated CPU of QEMU 7.2 is stopped before its memory travels, that of 10.0 runs meanwhile.
describeWithLibvirt.each<QemuVersion>(['10.0', '7.2'])('a domain of libvirt with QEMU %s', (qemu) => {
  let lab: Lab;
  let settings: unknown;
  beforeAll(async () => {
    lab = await Lab.start(await LabDomain.define(`cairn-stream-${process.pid}`, { qemu }));
    settings = await lab.settings();
  }, 300_000);
  afterAll(async () => {
    lab.machine.qmp.close();
    await lab.domain.remove();
  });

  it(`has exactly the memory that a base and ${INCREMENTS} increments by stream hold`, async () => {
    const { domain, machine, repo } = lab;
    const hold = new PauseHold(domain.dir);
    const watch = new CairnProcess(
      [
        ...['watch', domain.address, '--repo', repo, ...STREAM, '--hook', hold.command],
        ...['--every', '0.3', '--count', `${INCREMENTS + 1}`],
      ],
      domain.cli,
    );
    const wrong: string[] = [];
    for (let i = 0; i <= INCREMENTS; i++) {
      await hold.reached(watch);
      expect([await domain.state(), await machine.qmp.status()]).toEqual(['paused', 'finish-migrate']);
      const truth = await processTruth(machine);
      hold.release();
      const summary = await watch.message(isSummary, i);
      expect(summary).toMatchObject({
        kind: i === 0 ? 'base' : 'incremental',
        tracker: 'qmp-stream',
        compare_reason: '',
      });
      if (i > 0) expect(Number(summary.dirty_pages)).toBeLessThan(Number(summary.scanned_pages) / 2);
      const differing = await differingFromStored(truth, repo, String(summary.checkpoint_id));
      wrong.push(...differing.map((page) => `checkpoint ${i}: ${page}`));
    }
    expect(wrong).toEqual([]);
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    await lab.expectRunning();
    await lab.expectSettings(settings);
  }, 300_000);

  it('is suspended and resumed once, to everybody who listens to libvirt', async () => {
    const stop = lab.domain.listen();
    await sleep(500);
    await cairn(lab.args(...STREAM), lab.domain.cli);
    expect(await stop()).toEqual(['Suspended', 'Resumed']);
    expect(await lab.domain.virsh('domjobinfo', lab.domain.name)).toMatch(/None/);
  }, 120_000);

  it('is left alone while a block job is under way', async () => {
    const { domain } = lab;
    await domain.virsh('snapshot-create-as', domain.name, 'mine', '--disk-only', '--no-metadata');
    await domain.virsh('blockcommit', domain.name, 'vda', '--active');
    const refused = await runCairn(lab.args(...STREAM), domain.cli);
    expect(errorOf(refused.messages)).toMatchObject({
      code: 'VM_STATE',
      retryable: true,
      message: expect.stringContaining('block job') as unknown,
    });
    const until = Date.now() + RUNNING_LIMIT_MS;
    const pivot = (): Promise<string> => domain.virsh('blockjob', domain.name, 'vda', '--pivot');
    while (
      !(await pivot().then(
        () => true,
        () => false,
      )) &&
      Date.now() < until
    )
      await sleep(200);
    await lab.expectRunning();
    await lab.expectSettings(settings);
  }, 120_000);

  it('takes disk snapshots in the pause, and virsh goes on with the disk', async () => {
    const { domain } = lab;
    const path = join(domain.dir, 'disk.qcow2');
    const args = ['--tracker', 'qmp-stream', '--disks'];
    await cairn(lab.args(...args, 'internal'), domain.cli);
    expect(await domain.diskPath()).toBe(path);
    const { checkpoint_id: id } = await cairn(lab.args(...args, 'external'), domain.cli);
    const overlay = join(domain.dir, `disk.cairn-${String(id)}.qcow2`);
    expect(await domain.diskPath()).toBe(overlay);
    await domain.virsh('snapshot-create-as', domain.name, 'mine', '--disk-only', '--no-metadata');
    await domain.virsh('blockcommit', domain.name, 'vda', '--active', '--pivot', '--wait');
    expect(await domain.diskPath()).toBe(path);
    rmSync(overlay, { force: true });
    await lab.machine.guest('echo later | dd of=/dev/vda bs=512 seek=9000 oflag=direct conv=sync');
    await lab.expectExact();
  }, 180_000);

  it('may be saved by virsh only before or after, and runs on whichever loses', async () => {
    const { domain, machine } = lab;
    const image = join(domain.dir, 'saved');
    const hold = new PauseHold(domain.dir);
    const taking = new CairnProcess(lab.args(...STREAM, '--hook', hold.command), domain.cli);
    await hold.reached(taking);
    await expect(domain.virsh('save', domain.name, image)).rejects.toThrow('migration process in progress');
    await expect(domain.virsh('resume', domain.name)).rejects.toThrow('not finalized');
    expect([await domain.state(), await machine.qmp.status()]).toEqual(['paused', 'finish-migrate']);
    hold.release();
    expect(await taking.ended).toMatchObject({ exitCode: 0 });
    await lab.expectRunning();
    await lab.expectSettings(settings);
  }, 120_000);

  it.each([4, 6, 7, 8])(
    'runs on, also to libvirt, when cairn is killed at fault point %i',
    async (point) => {
      const { domain } = lab;
      const env = { CAIRN_FAULT_POINT: `${point}` };
      expect(await runCairn(lab.args(...STREAM), { ...domain.cli, env })).toMatchObject({
        signal: 'SIGKILL',
      });
      await lab.expectRunning();
      await lab.expectSettings(settings);
    },
    120_000,
  );

  it('runs on, also to libvirt, when cairn is killed while memory travels', async () => {
    const { domain } = lab;
    const cut = new CairnProcess(lab.args(...STREAM), domain.cli);
    await lab.streaming(cut);
    cut.child.kill('SIGKILL');
    await cut.ended;
    await lab.expectRunning();
    await lab.expectSettings(settings);
  }, 120_000);

  it.each(IN_PAUSE)(
    'loses its pause, also to libvirt, when cairn hangs in it at %s, and the next stream is exact',
    async (point) => {
      const { domain, machine, repo } = lab;
      // What the Cairns that were killed before have left goes with the next one.
      await cairn(['prune', '--repo', repo], domain.cli);
      const before = storedObjects(repo);
      const hung = await StoppedCairn.at(point, lab.args(...STREAM, '--pause-limit', '5s'), domain.cli);
      // Its answer comes after the events of what was before.
      await machine.qmp.status();
      const seen = machine.qmp.events.length;
      expect(await domain.state()).toBe('paused');
      expect(await machine.qmp.status()).toMatch(/^(finish-migrate|postmigrate)$/);
      await lab.expectRunning();
      expect(hung.isStopped()).toBe(true);
      const { exitCode, messages } = await hung.goOn();
      expect({ exitCode, error: errorOf(messages) }).toMatchObject({
        exitCode: 27,
        error: { code: 'PAUSE_LIMIT', detail: { endedBy: 'guard' } },
      });
      expect(storedObjects(repo)).toEqual(before);
      expect(pauseMarkers(domain.dir)).toEqual([]);
      await lab.expectRunning();
      expect(machine.qmp.events.slice(seen).filter(isRunEvent)).toEqual(['RESUME']);
      await lab.expectSettings(settings);
      await lab.expectExact();
    },
    180_000,
  );

  it('is resumed by the next cairn when all guards are killed in the pause as well', async () => {
    const { domain, machine } = lab;
    // A folder of its own: what a killed hook leaves must not look like the hold of the next one.
    const hold = new PauseHold(join(domain.dir, 'killed'));
    const cut = new CairnProcess(lab.args(...STREAM, '--hook', hold.command), domain.cli);
    await hold.reached(cut);
    for (const pid of childrenOf(cut.child.pid!)) process.kill(pid, 'SIGKILL');
    cut.child.kill('SIGKILL');
    await cut.ended;
    await sleep(500);
    expect([await domain.state(), await machine.qmp.status()]).toEqual(['paused', 'finish-migrate']);
    await runCairn(['doctor', domain.address], domain.cli);
    await lab.expectRunning();
    await lab.expectSettings(settings);
    await lab.expectExact();
    expect(readdirSync(join(domain.dir, 'runtime')).filter((name) => name.startsWith('stream-'))).toEqual([]);
  }, 180_000);

  it('is saved and restored by virsh after streams, and streamed again', async () => {
    const { domain, machine } = lab;
    const image = join(domain.dir, 'saved');
    machine.qmp.close();
    await domain.virsh('save', domain.name, image);
    const bytes = statSync(join(domain.dir, 'diary.log')).size;
    await domain.virsh('restore', image);
    const again = await domain.adopt();
    try {
      await again.waitForTick(1, 60_000, bytes);
      expect(await cairn(lab.args(...STREAM), domain.cli)).toMatchObject({ tracker: 'qmp-stream' });
      expect(await domain.state()).toBe('running');
      await again.waitForProgress();
    } finally {
      again.qmp.close();
    }
  }, 180_000);
});

describeWithLibvirt('a domain that virsh suspends while its memory travels', () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await Lab.start(await LabDomain.define(`cairn-suspend-${process.pid}`, { qemu: '10.0' }));
  }, 300_000);
  afterAll(async () => {
    lab.machine.qmp.close();
    await lab.domain.remove();
  });

  it('stays paused until virsh resumes it, and the checkpoint is dropped', async () => {
    const { domain } = lab;
    const settings = await lab.settings();
    const taking = await lab.stuckStream();
    await domain.virsh('suspend', domain.name);
    taking.child.kill('SIGCONT');
    const { messages } = await taking.ended;
    expect(errorOf(messages)).toMatchObject({ code: 'VM_STATE', retryable: true });
    expect(await domain.state()).toBe('paused');
    await domain.virsh('resume', domain.name);
    await lab.expectRunning();
    await lab.expectSettings(settings);
    await lab.expectExact();
  }, 180_000);
});

describeWithSession("a domain of a user's own libvirt", () => {
  let lab: Lab;
  beforeAll(async () => {
    // Short: the path of the monitor's socket begins with it.
    lab = await Lab.start(await LabDomain.define(`cst-${process.pid}`, { session: true }));
  }, 300_000);
  afterAll(async () => {
    lab.machine.qmp.close();
    await lab.domain.remove();
  });

  it('is streamed without root, exactly', async () => {
    const settings = await lab.settings();
    expect(await lab.expectExact()).toMatchObject({ kind: 'base' });
    expect(await lab.expectExact()).toMatchObject({ kind: 'incremental' });
    await lab.expectSettings(settings);
  }, 180_000);
});
