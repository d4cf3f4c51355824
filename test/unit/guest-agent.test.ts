import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { agentPathIn, recordedAgentPath } from '../../adapters/kvm/run/guest-agent/agent-path.js';
import { GuestFreezer } from '../../adapters/kvm/run/guest-agent/guest-freezer.js';
import { SocketAgent } from '../../adapters/kvm/run/guest-agent/socket-agent.js';
import type { PauseGuard } from '../../adapters/guard/pause-guard.js';
import { setPauseMarker } from '../../adapters/guard/pause-marker.js';
import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';

/** No process has it: above the kernel's limit of process ids. */
const DEAD_PID = 2 ** 30;

let dir: string;
let path: string;
let server: Server;
/** Commands as the agent got them, in order. */
let commands: string[];
/** Of the next commands; undefined: no answer at all. */
let answer: (command: string) => object | undefined;
/** What an earlier client left unread. */
let leftOver = '';

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-agent-'));
  path = join(dir, 'qga.sock');
  commands = [];
  leftOver = '';
  let status = 'thawed';
  answer = (command) => {
    if (command === 'guest-fsfreeze-freeze') status = 'frozen';
    if (command === 'guest-fsfreeze-thaw') status = 'thawed';
    return { return: command === 'guest-fsfreeze-status' ? status : 2 };
  };
  server = createServer(serve);
  await new Promise<void>((resolve) => server.listen(path, resolve));
});
afterEach(async () => {
  await new Promise((resolve) => server.close(resolve));
  rmSync(dir, { recursive: true });
});

function serve(socket: Socket): void {
  let text = '';
  if (leftOver !== '') socket.write(leftOver);
  socket.on('error', () => undefined);
  socket.on('data', (bytes: Buffer) => {
    const delimiter = bytes.lastIndexOf(0xff);
    text = delimiter < 0 ? text + bytes.toString('latin1') : bytes.toString('latin1', delimiter + 1);
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
      const { execute, arguments: args } = JSON.parse(text.slice(0, end)) as {
        execute: string;
        arguments?: { id: number };
      };
      text = text.slice(end + 1);
      if (execute === 'guest-sync-delimited') {
        socket.write(
          Buffer.concat([Buffer.of(0xff), Buffer.from(`${JSON.stringify({ return: args?.id })}\n`)]),
        );
        continue;
      }
      commands.push(execute);
      const reply = answer(execute);
      if (reply !== undefined) socket.write(`${JSON.stringify(reply)}\n`);
    }
  });
}

describe('the agent by its socket', () => {
  it('answers, whatever an earlier client left unread', async () => {
    leftOver = '{"return": 7}\n{"return": "half';
    const agent = new SocketAgent(path);
    expect(await agent.command('guest-fsfreeze-status', 1000)).toBe('thawed');
    expect(await agent.command('guest-fsfreeze-freeze', 1000)).toBe(2);
    agent.close();
  });

  it('is not there, does not answer in time, or refuses', async () => {
    await expect(new SocketAgent(join(dir, 'none')).command('guest-ping', 1000)).rejects.toMatchObject({
      code: 'GUEST_AGENT',
    });
    answer = () => undefined;
    await expect(new SocketAgent(path).command('guest-ping', 20)).rejects.toMatchObject({
      code: 'GUEST_AGENT',
    });
    answer = () => ({ error: { class: 'CommandNotFound', desc: 'it has been disabled' } });
    await expect(new SocketAgent(path).command('guest-ping', 1000)).rejects.toMatchObject({
      code: 'GUEST_AGENT',
      message: expect.stringContaining('it has been disabled'),
    });
  });

  it('takes no late answer for that of the next command', async () => {
    const agent = new SocketAgent(path);
    answer = () => undefined;
    await expect(agent.command('guest-fsfreeze-freeze', 20)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    answer = () => ({ return: 'fresh' });
    leftOver = '{"return": "late"}\n';
    expect(await agent.command('guest-fsfreeze-status', 1000)).toBe('fresh');
    agent.close();
  });
});

describe('freezing', () => {
  let told: string[];
  const marker = (): string => join(dir, 'frozen-1-1.json');

  function freezer(isRunning = true): GuestFreezer {
    told = [];
    const guard = {
      freezing: () =>
        Promise.resolve(void told.push('freezing', existsSync(marker()) ? 'marked' : 'unmarked')),
      handOver: () => void told.push('connection'),
      thawed: () => void told.push('thawed'),
    } as unknown as PauseGuard;
    return new GuestFreezer({
      agent: new SocketAgent(path),
      agentPath: path,
      markerPath: marker(),
      owner: () => Promise.resolve({ pid: process.pid, startTime: '1', attachment: 'a' }),
      guard: () => Promise.resolve(guard),
      releaseGuard: () => Promise.resolve(void told.push('released')),
      isRunning: () => Promise.resolve(isRunning),
    });
  }

  it('marks it, tells the guard, then freezes, and leaves no trace once thawed', async () => {
    const one = freezer();
    expect(await one.freeze(1000, 60_000)).toBe(2);
    expect(told).toEqual(['connection', 'freezing', 'marked']);
    expect(existsSync(marker())).toBe(true);
    await one.thaw();
    expect(told.at(-1)).toBe('thawed');
    expect(existsSync(marker())).toBe(false);
    expect(commands).toEqual(['guest-fsfreeze-status', 'guest-fsfreeze-freeze', 'guest-fsfreeze-thaw']);
    one.close();
  });

  it('thaws a guest that did not get done in time', async () => {
    const before = answer;
    answer = (command) => (command === 'guest-fsfreeze-freeze' ? undefined : before(command));
    const one = freezer();
    await expect(one.freeze(50, 60_000)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    expect(commands.at(-1)).toBe('guest-fsfreeze-thaw');
    expect(existsSync(marker())).toBe(false);
    one.close();
  });

  it('leaves the thaw to the guard when the agent refuses it', async () => {
    const one = freezer();
    await one.freeze(1000, 60_000);
    answer = () => ({ error: { class: 'GenericError', desc: 'no' } });
    await expect(one.thaw()).rejects.toMatchObject({ code: 'GUEST_FROZEN' });
    expect(told.at(-1)).toBe('released');
    expect(existsSync(marker())).toBe(true);
    // It may be at work: nothing is frozen on top of that.
    await expect(one.freeze(1000, 60_000)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    one.close();
  });

  it('touches no guest that somebody else has frozen, none that stands still, and none without disks', async () => {
    answer = () => ({ return: 'frozen' });
    const one = freezer();
    await expect(one.freeze(1000, 60_000)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    one.close();
    await expect(freezer(false).freeze(1000, 60_000)).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(commands).toEqual(['guest-fsfreeze-status']);
    answer = (command) => ({ return: command === 'guest-fsfreeze-status' ? 'thawed' : 0 });
    const two = freezer();
    await expect(two.freeze(1000, 60_000)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    expect(existsSync(marker())).toBe(false);
    two.close();
  });

  it('is undone by the next Cairn when the one that did it is gone', async () => {
    setPauseMarker(marker(), { pid: DEAD_PID, startTime: '1', attachment: 'b', agentPath: path });
    const one = freezer();
    expect(await one.recover()).toBe(true);
    expect(commands).toEqual(['guest-fsfreeze-thaw']);
    expect(existsSync(marker())).toBe(false);
    expect(await one.recover()).toBe(false);
    one.close();
  });
});

describe('the socket of the agent', () => {
  const PORT = [
    '-device',
    'virtio-serial',
    '-device',
    'virtserialport,chardev=qga0,name=org.qemu.guest_agent.0',
  ];

  it.each([
    [
      'as qm and people write it',
      [...PORT, '-chardev', 'socket,path=/run/1.qga,server=on,wait=off,id=qga0'],
      '/run/1.qga',
    ],
    [
      'relative to the folder of QEMU',
      [...PORT, '-chardev', 'socket,id=qga0,path=q,,1,server,nowait'],
      '/srv/q,1',
    ],
    ['not when QEMU is the client', [...PORT, '-chardev', 'socket,id=qga0,path=/run/1.qga'], ''],
    ['not without the port', ['-chardev', 'socket,path=/run/1.qga,server=on,wait=off,id=qga0'], ''],
    ['not when libvirt passed a descriptor', [...PORT, '-chardev', 'socket,id=qga0,fd=3,server=on'], ''],
  ])('is found %s', (_, argv, expected) => {
    expect(agentPathIn(parseCommandLine(argv), '/srv') ?? '').toBe(expected);
    expect(recordedAgentPath({ argv: ['qemu', ...argv], cwd: '/srv' })).toBe(expected);
  });
});
