import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';

import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';

import { CAIRN_MAIN } from '../support/cairn-main.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, runCairn, type CliResult } from './support/cairn-cli.js';
import { HarnessQmp } from './support/harness-qmp.js';
import { PauseHold } from './support/oracle.js';

/** The last message of a failed command. */
function errorOf(result: CliResult): Record<string, unknown> {
  const error = result.messages.find(({ message_type }) => message_type === 'error');
  if (error === undefined) throw new Error(`no error: ${JSON.stringify(result)}`);
  return error;
}

describe('what goes wrong gets a stable code, a remedy, and leaves the guest as it was', () => {
  let machine: LabMachine;
  let options: { dir: string };
  let repo = '';
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'bad', memoryMib: 104, devices: ['balloon'] });
    options = { dir: machine.dir };
  });
  beforeEach(async () => {
    repo = join(machine.dir, `repo-${Math.random()}`);
    await cairn(['init', '--repo', repo], options);
  });
  afterAll(() => machine.destroy());

  async function expectGuestIsWell(): Promise<void> {
    expect(await machine.qmp.status()).toBe('running');
    await machine.waitForProgress();
  }

  it('no repository', async () => {
    const result = await runCairn(
      ['checkpoint', machine.address, '--repo', join(machine.dir, 'nowhere')],
      options,
    );
    expect(errorOf(result)).toMatchObject({
      code: 'REPO_NOT_FOUND',
      exit_code: 10,
      hint: expect.stringContaining('cairn init'),
    });
    expect(result.exitCode).toBe(10);
    await expectGuestIsWell();
  });

  it('no VM at the address', async () => {
    const result = await runCairn(['checkpoint', `qmp:${machine.dir}/no.sock`, '--repo', repo], options);
    expect(errorOf(result)).toMatchObject({ code: 'VM_UNREACHABLE' });
    expect(result.exitCode).toBe(21);
  });

  it('an address that is none', async () => {
    const result = await runCairn(['checkpoint', 'web1', '--repo', repo], options);
    expect(errorOf(result)).toMatchObject({ code: 'VM_ADDRESS' });
    expect(result.exitCode).toBe(2);
  });

  it('the QMP socket is taken by another client', async () => {
    const other = connect(machine.qmpPath);
    await new Promise((resolve) => other.once('data', resolve));
    const result = await runCairn(['checkpoint', machine.address, '--repo', repo], options);
    other.destroy();
    expect(errorOf(result)).toMatchObject({
      code: 'VM_BUSY',
      hint: expect.stringContaining('-qmp'),
    });
    expect(result.exitCode).toBe(21);
    await expectGuestIsWell();
  });

  it('another Cairn on the same VM, by another socket and with another runtime folder', async () => {
    const second = join(machine.dir, 'second.sock');
    const shared = await LabMachine.start({
      name: 'shared',
      memoryMib: 104,
      devices: [],
      extraArgs: ['-qmp', `unix:${second},server=on,wait=off`],
    });
    try {
      const hold = new PauseHold(shared.dir);
      const first = new CairnProcess(
        ['checkpoint', shared.address, '--repo', repo, '--hook', hold.command],
        options,
      );
      await hold.reached(first);
      const elsewhere = { dir: machine.dir, env: { CAIRN_RUNTIME_DIR: join(machine.dir, 'elsewhere') } };
      const otherRepo = `${repo}-2`;
      await cairn(['init', '--repo', otherRepo], options);
      const result = await runCairn(['checkpoint', `qmp:${second}`, '--repo', otherRepo], elsewhere);
      expect(errorOf(result)).toMatchObject({ code: 'VM_LOCKED', detail: { pid: first.child.pid } });
      expect(result.exitCode).toBe(11);
      expect(await shared.qmp.status()).toBe('paused');
      hold.release();
      expect(await first.ended).toMatchObject({ exitCode: 0 });
      expect(await shared.qmp.status()).toBe('running');
      await cairn(['checkpoint', `qmp:${second}`, '--repo', otherRepo], elsewhere);
    } finally {
      await shared.destroy();
    }
  });

  it('a writable disk that nobody would snapshot', async () => {
    const raw = await LabMachine.start({
      name: 'raw',
      memoryMib: 104,
      devices: [],
      extraArgs: ['-drive', `file=${rawImage(machine.dir)},if=virtio,format=raw`],
    });
    try {
      const result = await runCairn(['checkpoint', raw.address, '--repo', repo], options);
      expect(errorOf(result)).toMatchObject({
        code: 'DISK_NOT_COVERED',
        hint: expect.stringContaining('--memory-only'),
      });
      expect(result.exitCode).toBe(22);
      expect(await raw.qmp.status()).toBe('running');
      await cairn(['checkpoint', raw.address, '--repo', repo, '--memory-only'], options);
    } finally {
      await raw.destroy();
    }
  });

  it('another VM under the name of a chain', async () => {
    const uuids = ['11111111-2222-3333-4444-555555555555', '99999999-2222-3333-4444-555555555555'];
    for (const [i, uuid] of uuids.entries()) {
      const other = await LabMachine.start({ name: 'twin', memoryMib: 104, devices: [], uuid });
      const result = await runCairn(['checkpoint', other.address, '--repo', repo], options);
      if (i === 0) expect(result.exitCode).toBe(0);
      else {
        expect(errorOf(result)).toMatchObject({
          code: 'CHAIN_WRONG_VM',
          hint: expect.stringContaining('--name'),
        });
        expect(result.exitCode).toBe(24);
        expect(await other.qmp.status()).toBe('running');
      }
      await other.destroy();
    }
  });

  it('a VM of another target than x86-64', async () => {
    const socket = join(machine.dir, 'i386.sock');
    const args = ['-M', 'pc', '-m', '32', '-nodefaults', '-display', 'none'];
    const other = spawn('qemu-system-i386', [...args, '-qmp', `unix:${socket},server=on,wait=off`], {
      stdio: 'ignore',
    });
    try {
      const monitor = await HarnessQmp.connect(socket);
      // QEMU takes one client of a socket at a time.
      monitor.close();
      for (const command of [['doctor'], ['checkpoint', '--repo', repo]]) {
        const result = await runCairn([...command, `qmp:${socket}`], options);
        expect(result.exitCode).toBe(22);
        expect(errorOf(result)).toMatchObject({
          code: 'VM_UNSUPPORTED',
          message: expect.stringContaining('qemu-system-i386'),
        });
      }
      const after = await HarnessQmp.connect(socket);
      expect(await after.status()).toBe('running');
      after.close();
    } finally {
      other.kill('SIGKILL');
      await once(other, 'exit');
    }
  });

  it('a hook that fails in the pause', async () => {
    const result = await runCairn(
      ['checkpoint', machine.address, '--repo', repo, '--hook', '[ $CAIRN_PHASE != paused ]'],
      options,
    );
    expect(errorOf(result)).toMatchObject({ code: 'HOOK_FAILED' });
    await expectGuestIsWell();
    expect(await cairn(['list', '--repo', repo], options)).toMatchObject({ checkpoints: [] });
    expect(await cairn(['checkpoint', machine.address, '--repo', repo], options)).toMatchObject({
      kind: 'base',
    });
  });

  it('QEMU killed in the middle of a checkpoint', async () => {
    const victim = await LabMachine.start({ name: 'victim', memoryMib: 104, devices: [] });
    await cairn(['checkpoint', victim.address, '--repo', repo], options);
    const hold = new PauseHold(victim.dir);
    const running = new CairnProcess(
      ['checkpoint', victim.address, '--repo', repo, '--hook', hold.command],
      options,
    );
    await hold.reached(running);
    await victim.kill();
    hold.release();
    const result = await running.ended;
    expect(errorOf(result)).toMatchObject({ code: 'VM_GONE' });
    expect(result.exitCode).toBe(21);
    expect(await cairn(['verify', '--repo', repo], options)).toMatchObject({ problems: [], checkpoints: 1 });
    await victim.destroy();
  });

  it('a full disk', async () => {
    const mount = join(machine.dir, 'small');
    mkdirSync(mount);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', mount]);
    try {
      const small = join(mount, 'repo');
      await cairn(['init', '--repo', small], options);
      const result = await runCairn(['checkpoint', machine.address, '--repo', small], options);
      expect(errorOf(result)).toMatchObject({ code: 'STORAGE_FULL' });
      expect(result.exitCode).toBe(25);
      await expectGuestIsWell();
      expect(await cairn(['verify', '--repo', small], options)).toMatchObject({
        problems: [],
        checkpoints: 0,
      });
    } finally {
      execFileSync('umount', [mount]);
    }
  });

  it('a read-only repository', async () => {
    const mount = join(machine.dir, 'readonly');
    mkdirSync(mount);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=200m', 'tmpfs', mount]);
    try {
      await cairn(['init', '--repo', mount], options);
      execFileSync('mount', ['-o', 'remount,ro', mount]);
      const result = await runCairn(['checkpoint', machine.address, '--repo', mount], options);
      expect(errorOf(result)).toMatchObject({ code: 'STORAGE_READ_ONLY' });
      expect(result.exitCode).toBe(25);
      await expectGuestIsWell();
    } finally {
      execFileSync('umount', [mount]);
    }
  });

  it('a truncated pack: nothing is restored from it, and verify names it', async () => {
    const { checkpoint_id: id } = await cairn(['checkpoint', machine.address, '--repo', repo], options);
    const pack = filesBelow(repo).find((path) => path.includes('/packs/'))!;
    machine.damagedOnPurpose.add(repo);
    truncateSync(pack, readFileSync(pack).length >> 1);
    const verified = await runCairn(['verify', '--repo', repo], options);
    expect(verified.exitCode).toBe(23);
    expect(JSON.stringify(verified.messages)).toContain('packs/');
    const result = await runCairn(
      ['restore', String(id), '--repo', repo, '--qmp', join(machine.dir, 'r.sock')],
      options,
    );
    expect(errorOf(result)).toMatchObject({
      code: 'REPO_DAMAGED',
      message: expect.stringContaining('packs/'),
    });
    expect(result.exitCode).toBe(23);
    await expectGuestIsWell();
  });

  it('a repository of a later format version', async () => {
    const config = join(repo, 'config');
    chmodSync(config, 0o600);
    machine.damagedOnPurpose.add(repo);
    const [line] = readFileSync(config, 'utf8').split('\n');
    writeFileSync(config, '');
    const later = line!.replace(/"version":\s*1/, '"version":99');
    appendFileSync(config, `${later}\n${sha256(later)}\n`);
    const result = await runCairn(['list', '--repo', repo], options);
    expect(errorOf(result)).toMatchObject({ code: 'REPO_VERSION' });
  });

  it('no permission to trace QEMU', async () => {
    // As the owner of all files but without any capability: may use the socket, may not trace a QEMU that has more.
    const withoutCapabilities = ['--bounding-set', '-all', '--inh-caps', '-all'];
    let output = '';
    try {
      execFileSync(
        'setpriv',
        [
          ...withoutCapabilities,
          process.execPath,
          CAIRN_MAIN,
          'checkpoint',
          machine.address,
          '--repo',
          repo,
          '--tracker',
          'pagemap-scan',
          '--json',
        ],
        {
          env: { CAIRN_RUNTIME_DIR: join(machine.dir, 'other-run'), PATH: process.env.PATH ?? '' },
          encoding: 'utf8',
          stdio: ['ignore', 'pipe', 'pipe'],
        },
      );
    } catch (error) {
      output = (error as { stdout: string }).stdout;
    }
    expect(output).toContain('"code":"TRACKER_UNAVAILABLE"');
    expect(output).toContain('"hint"');
    await expectGuestIsWell();
  });
});

function rawImage(dir: string): string {
  const path = join(dir, 'raw.img');
  execFileSync('qemu-img', ['create', '-q', '-f', 'raw', path, '16M']);
  return path;
}

function filesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

function sha256(text: string): string {
  return execFileSync('sha256sum', { input: text, encoding: 'utf8' }).slice(0, 64);
}
