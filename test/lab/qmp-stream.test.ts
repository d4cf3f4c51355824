import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { CAIRN_MAIN } from '../support/cairn-main.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, runCairn, type CliMessage } from './support/cairn-cli.js';
import { GENTLE_DISK_LOAD, gentleLoad } from './support/guest-loads.js';
import type { QemuVersion } from './support/lab-files.js';
import { PauseHold, checkpointAgainstTruth, differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

const INCREMENTS = 10;
const STREAM = ['--tracker', 'qmp-stream'];
const RESUME_LIMIT_MS = 20_000;
const NOBODY = 65534;

/** All that a stream changes for its time, with the operator's own choice of it. */
const OPERATOR_PARAMETERS = { 'max-bandwidth': 123_456_789, 'downtime-limit': 77 };

async function migrationSettings(machine: LabMachine): Promise<unknown> {
  return [
    await machine.qmp.command('query-migrate-capabilities'),
    await machine.qmp.command('query-migrate-parameters'),
  ];
}

async function waitUntilRunning(machine: LabMachine): Promise<void> {
  const until = Date.now() + RESUME_LIMIT_MS;
  while ((await machine.qmp.status()) !== 'running' && Date.now() < until) await sleep(20);
  expect(await machine.qmp.status()).toBe('running');
  await machine.waitForProgress();
}

function errorOf(messages: readonly CliMessage[]): CliMessage | undefined {
  return messages.find(({ message_type }) => message_type === 'error');
}

describe.each<QemuVersion>(['7.2', '10.0'])('checkpoints by a stream of QEMU %s', (qemu) => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  let settings: unknown;
  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'stream',
      qemu,
      smp: 2,
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(24));
    await machine.guest(GENTLE_DISK_LOAD);
    await machine.qmp.command('migrate-set-parameters', OPERATOR_PARAMETERS);
    await machine.qmp.command('migrate-set-capabilities', {
      capabilities: ['xbzrle', 'auto-converge', 'x-ignore-shared'].map((capability) => ({
        capability,
        state: true,
      })),
    });
    settings = await migrationSettings(machine);
  });
  afterAll(() => machine.destroy());

  it(`hold exactly the memory of the pause, in a base and ${INCREMENTS} increments under load`, async () => {
    const hold = new PauseHold(machine.dir);
    const watch = new CairnProcess(
      [
        ...['watch', machine.address, '--repo', options.repo, ...STREAM],
        ...['--every', '0.3', '--count', `${INCREMENTS + 1}`, '--hook', hold.command],
      ],
      options,
    );
    const wrong: string[] = [];
    for (let i = 0; i <= INCREMENTS; i++) {
      await hold.reached(watch);
      const truth = await processTruth(machine);
      hold.release();
      const summary = await watch.message(isSummary, i);
      expect(summary).toMatchObject({
        kind: i === 0 ? 'base' : 'incremental',
        tracker: 'qmp-stream',
        compare_reason: '',
      });
      // From the second on it is known what changed, and nothing else is reported.
      if (i > 0) expect(Number(summary.dirty_pages)).toBeLessThan(Number(summary.scanned_pages) / 2);
      const differing = await differingFromStored(truth, options.repo, String(summary.checkpoint_id));
      wrong.push(...differing.map((page) => `checkpoint ${i}: ${page}`));
      await machine.qmp.command('balloon', { value: (i % 3 === 0 ? 256 : i % 3 === 1 ? 160 : 200) << 20 });
    }
    expect(wrong).toEqual([]);
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    await machine.waitForProgress();
    await machine.qmp.command('balloon', { value: 256 << 20 });
    await machine.guest('lab stop');
    await machine.guest(gentleLoad(24));
    await machine.guest(GENTLE_DISK_LOAD);
  });

  it('in separate processes, which compare with the repository, alternating with another tracker', async () => {
    for (const tracker of ['qmp-stream', 'pagemap-scan', 'qmp-stream', 'qmp-stream']) {
      const { summary, differing } = await checkpointAgainstTruth(
        machine,
        ['--tracker', tracker],
        options,
        processTruth,
      );
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ kind: 'incremental', tracker });
    }
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  });

  it('leave the migration settings of the operator as they were', async () => {
    await cairn(['checkpoint', machine.address, '--repo', options.repo, ...STREAM], options);
    expect(await migrationSettings(machine)).toEqual(settings);
  });

  it('leave the disks writable', async () => {
    await cairn(['checkpoint', machine.address, '--repo', options.repo, ...STREAM], options);
    await machine.guest('lab stop');
    await machine.guest('echo written-later | dd of=/dev/vda bs=512 seek=9000 oflag=direct conv=sync');
    expect(await machine.guest('dd if=/dev/vda bs=512 skip=9000 count=1 iflag=direct 2>/dev/null')).toContain(
      'written-later',
    );
    await machine.guest(gentleLoad(24));
    await machine.guest(GENTLE_DISK_LOAD);
  });

  it('are refused while the operator migrates, and of a VM that is paused', async () => {
    // It never converges: 1 byte a millisecond.
    await machine.qmp.command('migrate-set-parameters', { 'max-bandwidth': 1000 });
    await machine.qmp.command('migrate', { uri: 'exec:cat > /dev/null' });
    const during = await runCairn(
      ['checkpoint', machine.address, '--repo', options.repo, ...STREAM],
      options,
    );
    expect(errorOf(during.messages)).toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(during.exitCode).toBe(22);
    await machine.qmp.command('migrate_cancel');
    await machine.qmp.command('migrate-set-parameters', OPERATOR_PARAMETERS);

    await machine.qmp.command('stop');
    const paused = await runCairn(
      ['checkpoint', machine.address, '--repo', options.repo, ...STREAM],
      options,
    );
    expect(errorOf(paused.messages)).toMatchObject({ code: 'VM_STATE' });
    expect(await machine.qmp.status()).toBe('paused');
    await machine.qmp.command('cont');
    await machine.waitForProgress();
  });

  it.each([4, 6, 7, 8])(
    'killed with -9 at fault point %i: the guest runs, the next one is exact',
    async (point) => {
      const crashed = await runCairn(['checkpoint', machine.address, '--repo', options.repo, ...STREAM], {
        ...options,
        env: { CAIRN_FAULT_POINT: `${point}` },
      });
      expect(crashed.signal).toBe('SIGKILL');
      await waitUntilRunning(machine);
      await expectCleanAndExact();
    },
  );

  it.each([
    ['while memory travels', false],
    ['in the pause together with its guards: the next Cairn cleans up', true],
  ])('killed with -9 %s', async (_, withGuards) => {
    // A folder of its own: what a killed hook leaves must not look like the hold of the next one.
    const holdDir = join(machine.dir, `hold-${withGuards}`);
    mkdirSync(holdDir);
    const hold = new PauseHold(holdDir);
    const cut = new CairnProcess(
      ['checkpoint', machine.address, '--repo', options.repo, '--hook', hold.command, ...STREAM],
      options,
    );
    while (((await machine.qmp.command('query-migrate')) as { status?: string }).status !== 'active')
      await sleep(1);
    if (withGuards) {
      await hold.reached(cut);
      for (const pid of childrenOf(cut.child.pid!)) process.kill(pid, 'SIGKILL');
    }
    cut.child.kill('SIGKILL');
    await cut.ended;
    if (withGuards) {
      await sleep(300);
      expect(await machine.qmp.status()).toBe('finish-migrate');
      await runCairn(['doctor', machine.address], options);
    }
    await waitUntilRunning(machine);
    await expectCleanAndExact();
  });

  it('restore to a guest that carries on', async () => {
    const { checkpoint_id: id } = await cairn(
      ['checkpoint', machine.address, '--repo', options.repo, ...STREAM],
      options,
    );
    const tick = machine.lastTick();
    await machine.kill();
    const bytes = machine.diary().length;
    const { pid } = await cairn(['restore', String(id), '--repo', options.repo], options);
    const again = await LabMachine.adopt('stream', machine.dir, Number(pid));
    try {
      const first = await again.waitForTick(1, 60_000, bytes);
      expect(first.tick).toBeLessThanOrEqual(tick + 1);
      expect(first.lines).toBe(first.tick);
      await again.waitForProgress();
      await again.guest('dd if=/dev/vda of=/dev/null bs=64k count=8 iflag=direct');
    } finally {
      await again.kill();
    }
  });

  async function expectCleanAndExact(): Promise<void> {
    const until = Date.now() + RESUME_LIMIT_MS;
    while (
      readdirSync(join(machine.dir, 'runtime')).some((name) => name.startsWith('stream-')) &&
      Date.now() < until
    ) {
      // The guard puts the settings back; the marker is the next Cairn's to remove.
      if (JSON.stringify(await migrationSettings(machine)) === JSON.stringify(settings)) break;
      await sleep(50);
    }
    expect(await migrationSettings(machine)).toEqual(settings);
    const { differing } = await checkpointAgainstTruth(machine, STREAM, options, processTruth);
    expect(differing).toEqual([]);
    expect(readdirSync(join(machine.dir, 'runtime')).filter((name) => name.startsWith('stream-'))).toEqual(
      [],
    );
    expect(await cairn(['verify', '--repo', options.repo], options)).toMatchObject({ problems: [] });
  }
});

describe('a user who has nothing but the monitor socket', () => {
  let machine: LabMachine;
  let repo: string;
  let runtimeDir: string;
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'least', devices: ['disk', 'balloon'] });
    const home = join(machine.dir, 'home');
    repo = join(home, 'repo');
    runtimeDir = join(home, 'run');
    mkdirSync(home);
    chownSync(home, NOBODY, NOBODY);
    chmodSync(machine.dir, 0o755);
    chmodSync(machine.qmpPath, 0o777);
    await machine.guest(gentleLoad(16));
  });
  afterAll(() => machine.destroy());

  function asNobody(...args: string[]): CliMessage {
    // Where the project lies below root's home, nobody cannot load it: then as root without any capability.
    const user =
      process.getuid?.() !== 0 || !isReadableForNobody()
        ? ['--bounding-set', '-all', '--inh-caps', '-all']
        : ['--reuid', `${NOBODY}`, '--regid', `${NOBODY}`, '--clear-groups'];
    const output = execFileSync('setpriv', [...user, process.execPath, CAIRN_MAIN, ...args, '--json'], {
      env: {
        CAIRN_RUNTIME_DIR: runtimeDir,
        CAIRN_STATE_DIR: join(runtimeDir, 'state'),
        PATH: process.env.PATH ?? '',
      },
      encoding: 'utf8',
    });
    return JSON.parse(output.trim().split('\n').at(-1)!) as CliMessage;
  }

  it('is told which tracker works, and what the others lack', () => {
    const { trackers, chosen } = asNobody('doctor', machine.address);
    expect(chosen).toBe('qmp-stream');
    expect(trackers).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ kind: 'pagemap-scan', usable: false }),
        expect.objectContaining({ kind: 'compare', usable: false }),
        expect.objectContaining({ kind: 'qmp-stream', usable: true }),
      ]),
    );
  });

  it('takes exact checkpoints that restore', async () => {
    asNobody('init', '--repo', repo);
    expect(asNobody('checkpoint', machine.address, '--repo', repo, '--memory-only')).toMatchObject({
      kind: 'base',
      tracker: 'qmp-stream',
    });
    await machine.waitForProgress();
    const summary = asNobody('checkpoint', machine.address, '--repo', repo);
    expect(summary).toMatchObject({ kind: 'incremental', tracker: 'qmp-stream', disk_snapshots: 1 });
    const tick = machine.lastTick();
    await machine.kill();
    const bytes = machine.diary().length;
    const options = { dir: machine.dir };
    const { pid } = await cairn(
      [
        ...['restore', String(summary.checkpoint_id), '--repo', repo],
        // Another user took it, who could not see the program's path.
        ...['--trust-machine', '--program', '/usr/bin/qemu-system-x86_64'],
      ],
      options,
    );
    const again = await LabMachine.adopt('least', machine.dir, Number(pid));
    try {
      const first = await again.waitForTick(1, 60_000, bytes);
      expect(first.tick).toBeLessThanOrEqual(tick + 1);
      await again.waitForProgress();
    } finally {
      await again.kill();
    }
  });

  function isReadableForNobody(): boolean {
    try {
      execFileSync('setpriv', [
        ...['--reuid', `${NOBODY}`, '--regid', `${NOBODY}`, '--clear-groups'],
        ...['test', '-r', CAIRN_MAIN],
      ]);
      return existsSync(CAIRN_MAIN);
    } catch {
      return false;
    }
  }
});

function childrenOf(pid: number): readonly number[] {
  const text = execFileSync('ps', ['-o', 'pid=', '--ppid', `${pid}`], { encoding: 'utf8' });
  return text.trim().split(/\s+/).map(Number);
}
