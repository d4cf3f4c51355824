/** A restore gives no rights away: a QEMU comes back as whom it ran, of files that nobody exchanged, for whom it may. */

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';

import { rightsOf } from '../../adapters/kvm/inspect/process-rights.js';
import type { JsonObject } from '../../src/types.js';
import { LabMachine } from './machine.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import { cairn, runCairn, type CliOptions, type CliResult } from './support/cairn-cli.js';
import { groundTruth } from './support/ground-truth.js';
import { removeWithRepositories } from './support/left-repositories.js';
import { checkpointAgainstTruth, differingFromStored } from './support/oracle.js';
import { ensureLab, labCache, qemuProgram, scratchDir, type QemuVersion } from './support/lab-files.js';

const NOBODY = 65_534;
const STRANGER = 12_345;
/** As a manager might: another user, some groups, one capability, a smaller bounding set. */
const AS_NOBODY = [
  ...['setpriv', '--reuid', `${NOBODY}`, '--regid', `${NOBODY}`, '--groups', '100,12345'],
  ...[
    '--inh-caps',
    '-all,+cap_10',
    '--ambient-caps',
    '-all,+cap_10',
    '--bounding-set',
    '-all,+cap_10,+cap_12',
  ],
  ...['--no-new-privs', '--'],
];

/** Root's: runtime folder, repository, and a copy of the lab's files that others can read. */
let root: string;
const formerCache = process.env.CAIRN_CACHE;
beforeAll(() => {
  ensureLab();
  root = scratchDir('rights');
  chmodSync(root, 0o755);
  const copy = join(root, 'cache/lab');
  mkdirSync(copy, { recursive: true });
  for (const part of ['guest', 'qemu-10'])
    cpSync(join(labCache(), part), join(copy, part), { recursive: true });
  process.env.CAIRN_CACHE = join(root, 'cache');
});
afterAll(() => {
  if (formerCache === undefined) delete process.env.CAIRN_CACHE;
  else process.env.CAIRN_CACHE = formerCache;
  removeWithRepositories(root);
});

/** A folder for a QEMU that runs as nobody. */
function foldersOf(name: string): {
  readonly dir: string;
  readonly repo: string;
  readonly options: CliOptions;
} {
  const dir = scratchDir(name);
  chownSync(dir, NOBODY, NOBODY);
  const options = { dir: join(root, name) };
  mkdirSync(options.dir);
  return { dir, repo: join(options.dir, 'repo'), options };
}

function errorOf({ messages }: CliResult): Readonly<Record<string, unknown>> {
  return messages.find(({ message_type }) => message_type === 'error') ?? {};
}

describe.each<QemuVersion>(['7.2', '10.0'])('a QEMU %s of an unprivileged user', (qemu) => {
  const name = `nobody${qemu.slice(0, 2).replace('.', '')}`;
  let dir: string;
  let repo: string;
  let options: CliOptions;
  let id: string;
  let before: Awaited<ReturnType<typeof rightsOf>>;

  beforeAll(async () => {
    ({ dir, repo, options } = foldersOf(name));
    const machine = await LabMachine.start({ name, qemu, dir, memoryMib: 128, startedBy: AS_NOBODY });
    before = await rightsOf(machine.pid);
    await cairn(['init', '--repo', repo], options);
    const taken = await checkpointAgainstTruth(machine, ['--memory-only'], { ...options, repo });
    expect(taken.differing).toEqual([]);
    id = String(taken.summary.checkpoint_id);
    await machine.kill();
  }, 300_000);
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  const restore = (...more: readonly string[]): Promise<CliResult> =>
    runCairn(['restore', id, '--repo', repo, ...more], options);

  it('comes back under the same ids, groups, capabilities and no-new-privileges, with the same memory', async () => {
    const { pid } = await cairn(['restore', id, '--repo', repo, '--paused'], options);
    const again = await LabMachine.adopt(name, dir, Number(pid));
    try {
      expect(before).toMatchObject({ users: Array(4).fill(NOBODY), moreGroups: [100, 12345] });
      expect(before).toMatchObject({ noNewPrivileges: true, capabilities: { effective: 1n << 10n } });
      expect(await rightsOf(again.pid)).toEqual(before);
      const env = readFileSync(`/proc/${again.pid}/environ`, 'latin1').split('\0').filter(Boolean);
      expect(
        env
          .map((entry) => entry.split('=')[0])
          .filter((key) => !/^(PATH|HOME|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_RUNTIME_DIR)$/.test(key!)),
      ).toEqual([]);
      expect(await differingFromStored(await groundTruth(again), repo, id)).toEqual([]);
    } finally {
      await again.kill();
    }
    // Its folder is not root's, so root writes no log there.
    expect(readdirSync(dir)).not.toContain('qmp.sock.log');
    expect(readdirSync(join(options.dir, 'runtime'))).toContainEqual(
      expect.stringMatching(new RegExp(`^qemu-${String(pid)}-\\d+\\.log$`)),
    );
  });

  it('goes on counting, and as root only when that is insisted on', async () => {
    const bytes = statSync(join(dir, 'diary.log')).size;
    const { pid } = await cairn(['restore', id, '--repo', repo], options);
    const again = await LabMachine.adopt(name, dir, Number(pid));
    try {
      const { tick } = await again.waitForTick(1, 60_000, bytes);
      await again.waitForTick(tick + 3, 60_000, bytes);
    } finally {
      await again.kill();
    }
    const { messages } = await restore('--as-root', '--paused');
    const summary = messages.find(({ message_type }) => message_type === 'summary')!;
    const asRoot = await LabMachine.adopt(name, dir, Number(summary.pid));
    try {
      expect((await rightsOf(asRoot.pid)).users).toEqual([0, 0, 0, 0]);
      expect(messages).toContainEqual(
        expect.objectContaining({ warning: `QEMU runs as user 0, and ran as user ${NOBODY}` }),
      );
    } finally {
      await asRoot.kill();
      rmSync(join(dir, 'qmp.sock'), { force: true });
      rmSync(join(dir, 'harness.sock'), { force: true });
      rmSync(join(dir, 'agent.sock'), { force: true });
    }
  });

  it('is not started from a folder that a group may write to, nor from a file of a stranger', async () => {
    const guest = join(labCache(), 'guest');
    chownSync(guest, 0, STRANGER);
    chmodSync(guest, 0o775);
    try {
      const result = await restore();
      expect(errorOf(result)).toMatchObject({
        code: 'RESTORE_REPLACEABLE',
        message: expect.stringContaining(`${guest} can be written to by group ${STRANGER}`),
      });
      expect(result.exitCode).toBe(22);
    } finally {
      chmodSync(guest, 0o755);
      chownSync(guest, 0, 0);
    }
    const program = join(labCache(), 'qemu-10/usr/bin/qemu-system-x86_64');
    const loaded = qemu === '10.0' ? program : join(guest, 'vmlinuz');
    // The folder of a replaced binary: the old one moved away, another one in its place.
    renameSync(loaded, `${loaded}.old`);
    cpSync(`${loaded}.old`, loaded);
    chownSync(loaded, STRANGER, STRANGER);
    try {
      expect(errorOf(await restore())).toMatchObject({
        code: 'RESTORE_REPLACEABLE',
        message: `${loaded} belongs to user ${STRANGER}`,
      });
    } finally {
      renameSync(`${loaded}.old`, loaded);
    }
  });

  it('gets no log written through a link', async () => {
    const victim = join(root, `victim-${name}`);
    writeFileSync(victim, 'untouched');
    symlinkSync(victim, join(dir, 'qmp.sock.log'));
    symlinkSync(victim, join(options.dir, 'link.log'));
    for (const log of [[], ['--log', join(dir, 'qmp.sock.log')], ['--log', join(options.dir, 'link.log')]]) {
      const result = await restore('--paused', ...log);
      if (log.length > 0) expect(errorOf(result)).toMatchObject({ code: 'RESTORE_FAILED' });
      else {
        const { pid } = result.messages.find(({ message_type }) => message_type === 'summary')!;
        await (await LabMachine.adopt(name, dir, Number(pid))).kill();
      }
      expect(readFileSync(victim, 'utf8')).toBe('untouched');
    }
    rmSync(join(dir, 'qmp.sock.log'));
  });

  describe('with a manifest that somebody else wrote', () => {
    const evil = () => join(root, `evil-${name}`);
    const proof = () => join(root, `ran-${name}`);
    let genuine: string;
    let path: string;

    beforeAll(() => {
      const folder = join(repo, 'vms', readdirSync(join(repo, 'vms'))[0]!, 'checkpoints');
      path = join(
        folder,
        readdirSync(folder).find((file) => file.includes(id))!,
      );
      genuine = readFileSync(path, 'utf8');
      writeFileSync(evil(), `#!/bin/sh\nid >${proof()}\n`, { mode: 0o755 });
    });
    beforeEach(() => rmSync(proof(), { force: true }));
    afterAll(() => writeFileSync(path, genuine));

    /** With a checksum that is right: everybody can make that. */
    function forge(change: (manifest: JsonObject, machine: JsonObject) => JsonObject): void {
      const manifest = JSON.parse(genuine.split('\n')[0]!) as JsonObject;
      const line = JSON.stringify(change(manifest, manifest.machine as JsonObject));
      chmodSync(path, 0o600);
      writeFileSync(path, `${line}\n${createHash('sha256').update(line).digest('hex')}\n`);
    }

    it('runs no program of it, unless that is said', async () => {
      forge((manifest, machine) => ({ ...manifest, machine: { ...machine, program: evil() } }));
      const result = await restore();
      expect(errorOf(result)).toMatchObject({
        code: 'RESTORE_UNTRUSTED',
        message: expect.stringContaining(evil()),
        hint: expect.stringContaining('--trust-machine'),
      });
      expect(result.exitCode).toBe(22);
      expect(existsSync(proof())).toBe(false);
      // And then with the rights of the recorded QEMU.
      chmodSync(root, 0o1777);
      expect(errorOf(await restore('--trust-machine'))).toMatchObject({ code: 'RESTORE_FAILED' });
      chmodSync(root, 0o755);
      expect(readFileSync(proof(), 'utf8')).toContain(`uid=${NOBODY}`);
    });

    it('asks at a terminal, and shows all that it would run', () => {
      forge((manifest, machine) => ({
        ...manifest,
        machine: { ...machine, program: evil(), argv: ['qemu', '-name', 'x\u001b[2J', '-S'] },
      }));
      const command = `${process.execPath} ${CAIRN_MAIN} restore ${id} --repo ${repo}`;
      const env = { ...process.env, NODE_OPTIONS: '', CAIRN_RUNTIME_DIR: join(options.dir, 'runtime') };
      const answered = (answer: string): string =>
        execFileSync('script', ['-qec', command, '/dev/null'], {
          env,
          input: answer,
          encoding: 'utf8',
          timeout: 60_000,
        });
      let output = '';
      try {
        output = answered('no\n');
      } catch (error) {
        output = String((error as { stdout?: unknown }).stdout);
      }
      expect(output).toContain(`run    ${evil()}`);
      expect(output).toContain('x\\x1b[2J');
      expect(output).toContain('RESTORE_UNTRUSTED');
      expect(existsSync(proof())).toBe(false);
    });

    it('is one of another host as well', async () => {
      writeFileSync(path, genuine);
      const elsewhere = { ...options, env: { CAIRN_STATE_DIR: join(options.dir, 'elsewhere') } };
      const args = ['restore', id, '--repo', repo, '--paused'];
      expect(errorOf(await runCairn(args, elsewhere))).toMatchObject({ code: 'RESTORE_UNTRUSTED' });
      const { pid } = await cairn([...args, '--trust-machine'], elsewhere);
      const again = await LabMachine.adopt(name, dir, Number(pid));
      expect(await rightsOf(again.pid)).toEqual(before);
      await again.kill();
    });

    it('is one of an older version too, which root starts only when that is insisted on', async () => {
      forge(({ hostSeal, ...manifest }, { rights, env, ...machine }) => {
        expect([typeof hostSeal, typeof rights]).toEqual(['string', 'object']);
        const { LD_LIBRARY_PATH: libraries = '' } = env as JsonObject;
        return { ...manifest, machine: { ...machine, env: { LD_LIBRARY_PATH: libraries } } };
      });
      const result = await restore('--trust-machine');
      expect(errorOf(result)).toMatchObject({
        code: 'RESTORE_RIGHTS',
        hint: expect.stringContaining('--as-root'),
      });
    });
  });
});

describe.each<QemuVersion>(['7.2', '10.0'])('a QEMU %s that gives its rights up itself', (qemu) => {
  const name = `drop${qemu.slice(0, 2).replace('.', '')}`;
  let dir: string;
  let repo: string;
  let options: CliOptions;
  beforeAll(() => void ({ dir, repo, options } = foldersOf(name)));
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  it('starts as root again, and is then what it was: user, folder, filter of system calls', async () => {
    const jail = join(dir, 'jail');
    mkdirSync(jail);
    const extraArgs = [
      ...(qemu === '7.2'
        ? ['-runas', 'nobody', '-chroot', jail]
        : ['-run-with', `user=nobody,chroot=${jail}`]),
      // With elevateprivileges=deny, the filter would end QEMU when it becomes nobody.
      ...['-sandbox', 'on,obsolete=deny,spawn=deny'],
    ];
    const machine = await LabMachine.start({ name, qemu, dir, memoryMib: 128, extraArgs });
    const before = await rightsOf(machine.pid);
    expect(before).toMatchObject({
      users: Array(4).fill(NOBODY),
      seccomp: 2,
      capabilities: { permitted: 0n },
    });
    await cairn(['init', '--repo', repo], options);
    const { checkpoint_id } = await cairn(
      ['checkpoint', machine.address, '--repo', repo, '--memory-only'],
      options,
    );
    await machine.kill();
    const bytes = statSync(join(dir, 'diary.log')).size;
    const { pid } = await cairn(['restore', String(checkpoint_id), '--repo', repo], options);
    const again = await LabMachine.adopt(name, dir, Number(pid));
    try {
      const { tick } = await again.waitForTick(1, 60_000, bytes);
      await again.waitForTick(tick + 3, 60_000, bytes);
      expect(await rightsOf(again.pid)).toEqual(before);
      expect(readlinkSync(`/proc/${again.pid}/root`)).toBe(jail);
    } finally {
      await again.kill();
    }
  });
});

describe('a Cairn that crashes while it holds guest memory', () => {
  const pattern = readFileSync('/proc/sys/kernel/core_pattern', 'latin1').trim();

  (/^[^|/]/.test(pattern) ? it : it.skip)('leaves no core dump, where other programs do', async () => {
    const { dir, repo, options } = foldersOf('core');
    const machine = await LabMachine.start({ name: 'core', dir, memoryMib: 128 });
    try {
      await cairn(['init', '--repo', repo], options);
      const crashed = (command: string, delayMs: number): readonly string[] => {
        const home = join(options.dir, `crash-${delayMs}`);
        mkdirSync(home);
        const script = `ulimit -c unlimited; ${command} & pid=$!; sleep ${delayMs / 1000}; kill -SEGV $pid; wait $pid; echo $?`;
        const env = { ...process.env, NODE_OPTIONS: '', CAIRN_RUNTIME_DIR: join(options.dir, 'runtime') };
        const status = execFileSync('bash', ['-c', script], {
          cwd: home,
          env,
          encoding: 'utf8',
          stdio: ['ignore', 'pipe', 'ignore'],
        });
        // 128 and the number of SIGSEGV.
        expect(status.trim().split('\n').at(-1)).toBe('139');
        return readdirSync(home);
      };
      expect(crashed('sleep 60', 500)).toHaveLength(1);
      const watch = `${process.execPath} ${CAIRN_MAIN} watch ${machine.address} --repo ${repo} --memory-only --every 0.5`;
      expect(crashed(watch, 6000)).toEqual([]);
      await sleep(200);
      await machine.waitForProgress();
    } finally {
      await machine.destroy();
    }
  });
});

it('runs the QEMUs that it says', () => {
  expect(qemuProgram('10.0', join(labCache(), 'qemu-10')).path).toContain(root);
});
