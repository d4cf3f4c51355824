import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { QmpClient, type QmpOptions } from '../../adapters/qemu/qmp-client.js';
import type { QmpEvent } from '../../adapters/qemu/monitor.js';
import {
  FakeQmpServer,
  GREETING,
  type FakeCommand,
  type FakeQmpOptions,
} from '../support/fake-qmp-server.js';

const opened: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

async function connected(
  server: FakeQmpOptions,
  options: QmpOptions = {},
): Promise<{ client: QmpClient; server: FakeQmpServer }> {
  const fake = await FakeQmpServer.start(server);
  opened.push(() => fake.stop());
  const client = await QmpClient.connect(fake.path, { commandTimeoutMs: 5000, ...options });
  opened.push(() => client.close());
  return { client, server: fake };
}

describe('a QMP client that connects', () => {
  it('negotiates and knows the version of the greeting', async () => {
    const { client } = await connected({});
    expect(client.version).toMatchObject({ qemu: { major: 7, minor: 2, micro: 22 } });
  });

  it('does not take half a greeting for one', async () => {
    const fake = await FakeQmpServer.start({ greeting: GREETING.slice(0, 31) });
    opened.push(() => fake.stop());
    const connecting = QmpClient.connect(fake.path, { greetingTimeoutMs: 50 });
    await expect(connecting).rejects.toMatchObject({ code: 'VM_BUSY' });
  });

  it('calls a socket that accepts but does not greet busy, and says what to do', async () => {
    const fake = await FakeQmpServer.start({ greeting: '' });
    opened.push(() => fake.stop());
    await expect(QmpClient.connect(fake.path, { greetingTimeoutMs: 50 })).rejects.toMatchObject({
      code: 'VM_BUSY',
      retryable: true,
      hint: expect.stringContaining('add a second -qmp socket') as unknown,
    });
  });

  it('says of a process that a signal has stopped that it stands still, and how it goes on', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'cairn-qmp-'));
    opened.push(() => rm(dir, { recursive: true }));
    const path = join(dir, 'sock');
    const listening = `require('net').createServer().listen('${path}', () => process.kill(process.pid, 'SIGSTOP'))`;
    const child = spawn(process.execPath, ['-e', listening]);
    opened.push(() => Promise.resolve(void child.kill('SIGKILL')));
    while (!readFileSync(`/proc/${child.pid!}/status`, 'utf8').includes('State:\tT')) await sleep(10);
    await expect(QmpClient.connect(path, { greetingTimeoutMs: 50 })).rejects.toMatchObject({
      code: 'VM_STATE',
      message: `process ${child.pid!} behind ${path} was stopped by a signal`,
      hint: expect.stringContaining('kill -CONT') as unknown,
    });
  });

  it('tells a missing socket and one without a listener from one it may not use', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'cairn-qmp-'));
    opened.push(() => rm(dir, { recursive: true }));
    await expect(QmpClient.connect(join(dir, 'none'))).rejects.toMatchObject({ code: 'VM_UNREACHABLE' });
    await writeFile(join(dir, 'file'), '');
    await chmod(join(dir, 'file'), 0o600);
    await expect(QmpClient.connect(join(dir, 'file'))).rejects.toMatchObject({ code: 'VM_UNREACHABLE' });
  });

  it('refuses a socket that speaks something else', async () => {
    const fake = await FakeQmpServer.start({ greeting: 'SSH-2.0-OpenSSH_9.2\r\n' });
    opened.push(() => fake.stop());
    await expect(QmpClient.connect(fake.path)).rejects.toMatchObject({ code: 'QMP_PROTOCOL' });
  });

  it('gives up waiting when it is aborted', async () => {
    const fake = await FakeQmpServer.start({ greeting: '' });
    opened.push(() => fake.stop());
    const abort = new AbortController();
    const connecting = QmpClient.connect(fake.path, { greetingTimeoutMs: 60_000, signal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await expect(connecting).rejects.toMatchObject({ code: 'INTERRUPTED' });
  });

  it('ends when the other side hangs up before the greeting', async () => {
    const fake = await FakeQmpServer.start({ greeting: '' });
    const connecting = QmpClient.connect(fake.path, { greetingTimeoutMs: 60_000 });
    setTimeout(() => void fake.stop(), 20);
    await expect(connecting).rejects.toMatchObject({ code: 'VM_GONE' });
  });
});

describe('commands', () => {
  it('get their own answer when answers come in another order', async () => {
    const held: FakeCommand[] = [];
    const { client } = await connected({
      onCommand: (command, peer) => {
        held.push(command);
        if (held.length === 3) for (const each of held.reverse()) peer.answer(each, each.execute);
      },
    });
    const answers = ['first', 'second', 'third'].map((name) => client.execute(name));
    expect(await Promise.all(answers)).toEqual(['first', 'second', 'third']);
  });

  it('carry their arguments', async () => {
    const { client, server } = await connected({ onCommand: (command, peer) => peer.answer(command, {}) });
    await client.execute('qom-get', { path: '/machine', property: 'type' });
    expect(server.commands[0]).toMatchObject({
      execute: 'qom-get',
      arguments: { path: '/machine', property: 'type' },
    });
  });

  it('get an answer that is cut anywhere, inside a character too', async () => {
    const { client } = await connected({
      onCommand: (command, peer) => {
        const bytes = Buffer.from(`${JSON.stringify({ return: 'größer ☃', id: command.id })}\n`);
        let at = 0;
        const next = (): void => {
          if (at >= bytes.length) return;
          peer.sendBytes(bytes.subarray(at, at + 1));
          at += 1;
          setImmediate(next);
        };
        next();
      },
    });
    expect(await client.execute('anything')).toBe('größer ☃');
  });

  it('fail with class and text of an error reply', async () => {
    const { client } = await connected({
      onCommand: (command, peer) =>
        peer.send(
          `{"error": {"class": "CommandNotFound", "desc": "no such thing"}, "id": "${command.id}"}\n`,
        ),
    });
    await expect(client.execute('x-unknown')).rejects.toMatchObject({
      code: 'QMP_COMMAND',
      message: expect.stringContaining('x-unknown') as unknown,
      detail: { class: 'CommandNotFound', desc: 'no such thing', command: 'x-unknown' },
    });
  });

  it('time out one by one, and a late answer disturbs nobody', async () => {
    const late: FakeCommand[] = [];
    const { client } = await connected({
      onCommand: (command, peer) => {
        if (command.execute === 'slow') late.push(command);
        else {
          for (const each of late.splice(0)) peer.answer(each, 'too late');
          peer.answer(command, 'in time');
        }
      },
    });
    await expect(client.execute('slow', undefined, { timeoutMs: 30 })).rejects.toMatchObject({
      code: 'QMP_TIMEOUT',
      detail: { command: 'slow' },
    });
    expect(await client.execute('quick')).toBe('in time');
  });

  it('are all settled when the connection is lost, and later ones fail at once', async () => {
    const { client } = await connected({ onCommand: (_, peer) => setTimeout(() => peer.hangUp(), 20) });
    const calls = ['one', 'two', 'three'].map((name) => client.execute(name));
    const outcomes = await Promise.allSettled(calls);
    expect(outcomes.map((outcome) => outcome.status)).toEqual(['rejected', 'rejected', 'rejected']);
    for (const call of calls) await expect(call).rejects.toMatchObject({ code: 'VM_GONE' });
    await expect(client.execute('four')).rejects.toMatchObject({ code: 'VM_GONE' });
  });

  it.each([
    ['garbage', 'not json at all\n'],
    ['JSON that is no object', '[1, 2]\n'],
    ['a message of no known kind', '{"hello": 1}\n'],
    ['a reply without an id', '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'],
  ])('are all settled by %s', async (_, text) => {
    const { client } = await connected({ onCommand: (__, peer) => peer.send(text) });
    await expect(client.execute('one')).rejects.toMatchObject({ code: 'QMP_PROTOCOL' });
    await expect(client.execute('two')).rejects.toMatchObject({ code: 'QMP_PROTOCOL' });
  });

  it('fail after close', async () => {
    const { client } = await connected({});
    await client.close();
    await expect(client.execute('anything')).rejects.toMatchObject({ code: 'VM_GONE' });
  });
});

describe('events', () => {
  it('reach every listener until it leaves, between the answers', async () => {
    const { client } = await connected({
      onCommand: (command, peer) => {
        peer.send('{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\n');
        peer.answer(command, {});
        peer.send('{"event": "BALLOON_CHANGE", "data": {"actual": 7}}\n');
      },
    });
    const seen: QmpEvent[] = [];
    const leave = client.onEvent((event) => seen.push(event));
    await client.execute('stop');
    await client.execute('again');
    // An answer proves that what was sent before it has arrived: the first two events and the third.
    expect(seen.slice(0, 3)).toEqual([
      { event: 'STOP', data: {} },
      { event: 'BALLOON_CHANGE', data: { actual: 7 } },
      { event: 'STOP', data: {} },
    ]);
    leave();
    const before = seen.length;
    await client.execute('once more');
    expect(seen).toHaveLength(before);
  });
});
