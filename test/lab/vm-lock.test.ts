/**
 * The lock of a running QEMU, with somebody on the host who takes what he can of it before Cairn comes. He keeps neither root nor the user of
 * that QEMU from it, and those two still keep each other out.
 */

import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import { processStartTimeSync } from '../../src/host/process-identity.js';
import { LabMachine } from './machine.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import { cairn, runCairn, type CliOptions, type CliResult } from './support/cairn-cli.js';
import { gentleLoad } from './support/guest-loads.js';
import { scratchDir, shareLab } from './support/lab-files.js';
import { removeWithRepositories } from './support/left-repositories.js';
import { checkpointAgainstTruth } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

const NOBODY = 65_534;
/** Runs the QEMU, and nothing else. */
const OWNER = 64_321;

const reason = whyNotOthers();
if (reason !== '') process.stderr.write(`test/lab/vm-lock.test.ts is skipped: ${reason}\n`);
const describeWithOthers = reason === '' ? describe : describe.skip;

function whyNotOthers(): string {
  if (process.getuid?.() !== 0) return 'becoming another user needs root';
  const { status } = spawnSync(process.execPath, [CAIRN_MAIN, '--version'], { uid: OWNER, gid: OWNER });
  return status === 0 ? '' : `user ${OWNER} cannot run ${CAIRN_MAIN}`;
}

interface User extends CliOptions {
  readonly repo: string;
}

describeWithOthers('the lock of a QEMU that belongs to a user', () => {
  let root: string;
  let unshare: () => void;
  let machine: LabMachine;
  let users: Readonly<Record<'root' | 'owner', User>>;
  const squatters: ChildProcess[] = [];

  beforeAll(async () => {
    root = scratchDir('lock');
    chmodSync(root, 0o755);
    unshare = shareLab(join(root, 'cache'));
    const dir = join(root, 'vm');
    mkdirSync(dir);
    chownSync(dir, OWNER, OWNER);
    machine = await LabMachine.start({
      ...{ name: 'locked', dir, memoryMib: 96 },
      // The first one is taken by whoever takes the checkpoint.
      extraArgs: ['-qmp', `unix:${join(dir, 'second.sock')},server=on,wait=off`],
      startedBy: ['setpriv', '--reuid', `${OWNER}`, '--regid', `${OWNER}`, '--clear-groups', '--'],
    });
    await machine.guest(gentleLoad(8));
    users = { root: await userOf('root', 0), owner: await userOf('owner', OWNER) };
  });
  afterEach(async () => {
    for (const squatter of squatters.splice(0)) {
      squatter.kill('SIGKILL');
      await once(squatter, 'close');
    }
  });
  afterAll(async () => {
    unshare();
    await machine.kill();
    removeWithRepositories(root);
  });

  async function userOf(name: string, id: number): Promise<User> {
    const dir = join(root, name);
    for (const path of [dir, join(dir, 'runtime')]) {
      mkdirSync(path, { mode: 0o700 });
      chownSync(path, id, id);
    }
    // The folders of the test run are root's.
    const env = { CAIRN_STATE_DIR: join(dir, 'state'), TMPDIR: dir };
    const user = { dir, repo: join(dir, 'repo'), uid: id, gid: id, env };
    await cairn(['init', '--repo', user.repo], user);
    return user;
  }

  /** A process of nobody that takes the socket of the lock, and tries its folder. */
  async function squat(then: string): Promise<{ readonly pid: number; readonly barredBy: string }> {
    const { pid } = machine;
    const script = `
      import { openSync } from 'node:fs';
      import { connect, createServer } from 'node:net';
      const path = '\\0cairn-vm-process-${pid}_${processStartTimeSync(pid)}';
      let barredBy = '';
      try {
        openSync('/proc/${pid}/fd', 'r');
      } catch (error) {
        barredBy = error.code;
      }
      createServer().listen({ path, backlog: 1 }, () => {
        ${then}
      });`;
    // What the test runner needs in NODE_OPTIONS is not what a user has.
    const env = { PATH: process.env.PATH };
    const args = ['--input-type=module', '-e', script];
    const squatter = spawn(process.execPath, args, {
      ...{ uid: NOBODY, gid: NOBODY, cwd: '/', env, stdio: ['ignore', 'pipe', 'inherit'] },
    });
    squatters.push(squatter);
    const [said] = (await once(squatter.stdout, 'data')) as [Buffer];
    return { pid: squatter.pid!, barredBy: said.toString().trim() };
  }

  /** A checkpoint of one, during whose pause the other asks for one. */
  async function takeAgainst(who: keyof typeof users, other: keyof typeof users) {
    let refused: CliResult | undefined;
    const taken = await checkpointAgainstTruth(machine, [], users[who], async (...of) => {
      const { repo, ...options } = users[other];
      const address = `qmp:${join(machine.dir, 'second.sock')}`;
      refused = await runCairn(['checkpoint', address, '--repo', repo], options);
      return processTruth(...of);
    });
    return { ...taken, refused };
  }

  describe.each([
    { name: 'that answers', then: `console.log(barredBy);`, isNamed: true },
    {
      // The queue of connections is full, so nobody learns who listens.
      name: 'that answers nobody',
      then: `
        for (let n = 0; n < 8; n++) connect(path).on('error', () => undefined);
        console.log(barredBy);
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);`,
      isNamed: false,
    },
  ])('with a squatter $name', ({ then, isNamed }) => {
    it.each([
      { who: 'root', other: 'owner' },
      { who: 'owner', other: 'root' },
    ] as const)('is had by $who, who is told of him, and not by $other meanwhile', async ({ who, other }) => {
      const squatter = await squat(then);
      expect(squatter.barredBy).toBe('EACCES');
      const { refused, summary, differing, warnings } = await takeAgainst(who, other);
      expect({ exitCode: refused?.exitCode, error: refused?.messages.at(-1) }).toMatchObject({
        exitCode: 11,
        error: { code: 'VM_LOCKED', retryable: true },
      });
      expect(warnings).toContainEqual(
        expect.stringContaining(
          isNamed ? `process ${squatter.pid} of user ${NOBODY} holds` : 'does not answer',
        ),
      );
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ message_type: 'summary' });
      await machine.waitForProgress();
    });
  });

  it('is had without a word when nobody squats it', async () => {
    const { refused, differing, warnings } = await takeAgainst('owner', 'root');
    expect(refused?.messages.at(-1)).toMatchObject({ code: 'VM_LOCKED' });
    expect(differing).toEqual([]);
    expect(warnings.filter((text) => text.includes('lock'))).toEqual([]);
  });
});
