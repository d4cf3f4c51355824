/** Whatever answers on a QMP socket: what it sends ends by a code, and in bounded memory. */

import { connect, createServer } from 'node:net';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, describe, expect, it } from '@jest/globals';

import { machineFacts } from '../../adapters/kvm/inspect/machine-facts.js';
import { findBlockers } from '../../adapters/kvm/inspect/blockers.js';
import { hazardsOf, takeInventory } from '../../adapters/kvm/inspect/hazards.js';
import { listRamBlocks } from '../../adapters/kvm/memory/ram-blocks.js';
import { qmpGuard } from '../../adapters/kvm/run/qmp-guard.js';
import { RunStateControl } from '../../adapters/kvm/run/run-state.js';
import { Migration } from '../../adapters/kvm/trackers/qmp-stream/migration.js';
import { planSettings } from '../../adapters/kvm/trackers/qmp-stream/settings.js';
import { qmpStreamReport } from '../../adapters/kvm/trackers/qmp-stream/support.js';
import { resultOf } from '../../adapters/libvirt/qemu/monitor.js';
import { listDisks } from '../../adapters/qemu/block-devices.js';
import { DeviceState } from '../../adapters/qemu/device-state.js';
import type { Monitor } from '../../adapters/qemu/monitor.js';
import { QmpClient } from '../../adapters/qemu/qmp-client.js';
import { MAX_REPLY_BYTES, parseReply } from '../../adapters/qemu/qmp-json.js';
import { LineBuffer } from '../../adapters/qemu/qmp-lines.js';
import { isCheckpointError } from '../../src/errors.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { Json, JsonObject } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';
import { FakeQmpServer, GREETING } from '../support/fake-qmp-server.js';

const opened: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

/** What a client gets for a command to a server that answers it with `line`, once connected. */
async function answerTo(line: (id: string) => string): Promise<unknown> {
  const fake = await FakeQmpServer.start({
    onCommand: (command, peer) => peer.send(`${line(command.id)}\n`),
  });
  opened.push(() => fake.stop());
  const client = await QmpClient.connect(fake.path);
  opened.push(() => client.close());
  return client.execute('query-anything');
}

describe('a reply', () => {
  it('may be nested as deep as the longest chain of images, and no deeper than QEMU reads itself', async () => {
    const nested = (depth: number) => (id: string) =>
      `{"id": "${id}", "return": ${'['.repeat(depth)}${']'.repeat(depth)}}`;
    await expect(answerTo(nested(1000))).resolves.toBeDefined();
    for (const depth of [1024, 100_000, 4 << 20]) {
      await expect(answerTo(nested(depth))).rejects.toMatchObject({
        code: 'QMP_PROTOCOL',
        message: expect.stringContaining('nested deeper') as unknown,
      });
    }
  });

  it('has brackets in its texts that do not count', async () => {
    const text = '[{"\\'.repeat(4000);
    await expect(answerTo((id) => JSON.stringify({ id, return: text }))).resolves.toBe(text);
  });

  it('of very many values is refused before they are made', async () => {
    const flood = (id: string): string => `{"id": "${id}", "return": [${'{},'.repeat(4 << 20)}{}]}`;
    await expect(answerTo(flood)).rejects.toMatchObject({
      code: 'QMP_PROTOCOL',
      message: expect.stringContaining('values') as unknown,
    });
  });

  it('that is too long is refused though its end has come', async () => {
    const long = (id: string): string => `{"id": "${id}", "return": "${'x'.repeat(MAX_REPLY_BYTES)}"}`;
    await expect(answerTo(long)).rejects.toMatchObject({ code: 'QMP_PROTOCOL' });
  });

  it('that is an error brings only the head of its text into ours', async () => {
    const error = (id: string): string =>
      JSON.stringify({ id, error: { class: 'GenericError', desc: 'x'.repeat(1 << 20) } });
    const failure = await answerTo(error).catch((thrown: unknown) => thrown);
    expect(isCheckpointError(failure, 'QMP_COMMAND')).toBe(true);
    expect(String(failure).length).toBeLessThan(10_000);
  });

  it.each([
    ['its id is a number', '{"return": {}, "id": 1}'],
    ['its id is an object', '{"return": {}, "id": {}}'],
    ['its error is a text', '{"error": "no"}'],
    ['its error is null', '{"error": null, "id": null}'],
  ])('to no command ends the connection: %s', async (_, line) => {
    await expect(answerTo(() => line)).rejects.toMatchObject({ code: 'QMP_PROTOCOL' });
  });

  it('through libvirt is held to the same', () => {
    const deep = `{"return": ${'['.repeat(5000)}${']'.repeat(5000)}}`;
    expect(() => resultOf('query-block', deep)).toThrow(expect.objectContaining({ code: 'QMP_PROTOCOL' }));
  });
});

describe('a line that never ends', () => {
  it.each([
    ['before the greeting', '', 'QMP_PROTOCOL'],
    ['after the greeting', GREETING, 'QMP_PROTOCOL'],
  ])('ends the connection %s, with no more taken than a reply may have', async (_, greeting, code) => {
    const dir = await mkdtemp(join(tmpdir(), 'cairn-hostile-'));
    opened.push(() => rm(dir, { recursive: true }));
    const path = join(dir, 'qmp.sock');
    let sentBytes = 0;
    const chunk = Buffer.alloc(64 << 10, 0x5b);
    const server = createServer((socket) => {
      const flood = (): void => {
        while (!socket.destroyed) {
          sentBytes += chunk.length;
          if (!socket.write(chunk)) return void socket.once('drain', flood);
        }
      };
      socket.on('error', () => undefined);
      socket.write(greeting);
      flood();
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    opened.push(() => new Promise((resolve) => server.close(resolve)));
    await expect(QmpClient.connect(path)).rejects.toMatchObject({ code });
    // What the kernel and Node hold on the way comes on top.
    expect(sentBytes).toBeLessThan(MAX_REPLY_BYTES + (4 << 20));
  });

  it('takes the room of its bytes, in however small pieces they come', () => {
    const lines = new LineBuffer(1 << 20);
    const piece = Buffer.from('x');
    const before = process.memoryUsage().external + process.memoryUsage().heapUsed;
    let taken = 0;
    while (taken < 1 << 20 && lines.push(piece, () => true)) taken++;
    expect(taken).toBe(1 << 20);
    expect(process.memoryUsage().external + process.memoryUsage().heapUsed - before).toBeLessThan(64 << 20);
    expect(lines.push(piece, () => true)).toBe(false);
  });
});

it('lines come out whole, however they were cut', () => {
  const text = 'one\ntwo\n\nthree\n';
  for (let size = 1; size <= text.length; size++) {
    const lines = new LineBuffer(10);
    const seen: string[] = [];
    for (let at = 0; at < text.length; at += size) {
      expect(
        lines.push(Buffer.from(text.slice(at, at + size)), (line) => seen.push(line.toString()) > 0),
      ).toBe(true);
    }
    expect(seen).toEqual(['one', 'two', '', 'three']);
  }
});

it('a listener that only accepts and never speaks is let go of', async () => {
  const fake = await FakeQmpServer.start({ greeting: '' });
  opened.push(() => fake.stop());
  await expect(QmpClient.connect(fake.path, { greetingTimeoutMs: 50 })).rejects.toMatchObject({
    code: 'VM_BUSY',
  });
  // It was really closed: the server takes the next one.
  const next = connect(fake.path);
  await new Promise((resolve) => next.once('connect', resolve));
  next.destroy();
});

/** A QEMU that answers well. */
const REPLIES: Readonly<Record<string, Json>> = {
  'query-status': { status: 'running', running: true },
  'query-migrate': {
    status: 'completed',
    'blocked-reasons': [],
    ram: { remaining: 4096, transferred: 1, 'dirty-sync-count': 1 },
    'error-desc': 'none',
  },
  'query-name': { name: 'web1' },
  'query-uuid': { UUID: '3f6f0b6e-0000-4000-8000-000000000001' },
  'qom-get': 'pc-i440fx-7.2-machine',
  'query-target': { arch: 'x86_64' },
  'query-version': { qemu: { major: 7, minor: 2, micro: 22 }, package: '' },
  'query-kvm': { enabled: true, present: true },
  'query-block-jobs': [{ type: 'mirror', device: 'd' }],
  'qom-list': [
    { name: 'fs0', type: 'child<vhost-user-fs-pci>' },
    { name: 'balloon', type: 'child<virtio-balloon-pci>' },
  ],
  'query-memdev': [{ id: 'mem', share: true }],
  'x-query-virtio-status': {
    'vhost-dev': { 'protocol-features': { protocols: ['VHOST_USER_PROTOCOL_F_MQ'] } },
  },
  'query-migrate-capabilities': [{ capability: 'events', state: false }],
  'query-migrate-parameters': {
    'max-bandwidth': 1,
    'downtime-limit': 300,
    'tls-creds': 'x',
    mode: 'normal',
    'avail-switchover-bandwidth': 1,
    'zero-page-detection': 'none',
  },
  'query-block': [
    {
      device: 'd',
      inserted: {
        'node-name': 'n',
        drv: 'qcow2',
        ro: false,
        file: '/x',
        image: { filename: '/x', 'virtual-size': 512, 'backing-image': { filename: '/y' } },
      },
    },
  ],
  'human-monitor-command':
    'Block Name PSize Offset Used Total\r\n pc.ram    4 KiB  0x0 0x10000000 0x10000000\r\n',
  'add-fd': { 'fdset-id': 3, fd: 17 },
};

const WRONG: readonly Json[] = [null, true, -1, 1e300, '', 'ä\u0000', [], [null], [[]], {}, { a: { b: [] } }];

/** Everything that can be said wrongly in a value: itself, and each thing in it. */
function* spoilt(value: Json): Generator<Json> {
  yield* WRONG;
  if (Array.isArray(value)) {
    const items = value as readonly Json[];
    for (const [i, item] of items.entries())
      for (const wrong of spoilt(item)) yield items.map((other, j) => (i === j ? wrong : other));
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, item] of Object.entries(value as JsonObject)) {
      for (const wrong of spoilt(item ?? null)) yield { ...(value as JsonObject), [name]: wrong };
      yield Object.fromEntries(Object.entries(value as JsonObject).filter(([other]) => other !== name));
    }
  }
}

const qemu = { pid: process.pid, startTime: '7', program: process.execPath };

/** What Cairn asks of a monitor, each with the commands whose replies it reads. */
const READERS: readonly (readonly [string, readonly string[], (monitor: Monitor) => Promise<unknown>])[] = [
  [
    'who it is',
    ['query-target', 'query-name', 'query-uuid', 'qom-get', 'query-version'],
    (monitor) => machineFacts(monitor, qemu, '/run/x'),
  ],
  [
    'its hazards',
    ['query-migrate', 'qom-list', 'x-query-virtio-status'],
    async (monitor) => hazardsOf(await takeInventory(monitor, process.pid, [])),
  ],
  ['what blocks it', ['query-migrate', 'qom-list', 'x-query-virtio-status'], findBlockers],
  ['its memory', ['human-monitor-command'], async (monitor) => layOut(await listRamBlocks(monitor))],
  ['its disks', ['query-block'], listDisks],
  [
    'the tracker qmp-stream',
    ['query-migrate', 'qom-list', 'query-memdev', 'query-kvm', 'query-version', 'qom-get'],
    (monitor) => qmpStreamReport(monitor, { memoryBytes: 4096, seesSharers: false }),
  ],
  ['migration settings', ['query-migrate-capabilities', 'query-migrate-parameters'], planSettings],
  [
    'how a migration goes',
    ['query-migrate'],
    async (monitor) => {
      const migration = await Migration.start(monitor, 0);
      try {
        return await migration.progress();
      } finally {
        migration.close();
      }
    },
  ],
  [
    'where device state goes',
    ['add-fd'],
    async (monitor) => {
      const state = await DeviceState.open(monitor);
      await state.save();
      await state.close();
    },
  ],
  [
    'its run state',
    ['query-status', 'query-migrate'],
    async (monitor) => {
      const control = new RunStateControl({
        monitor,
        process: qemu,
        guard: qmpGuard('/none'),
        runtimeDir: '/nonexistent',
      });
      try {
        await control.read();
        return await control.isFinishingMigration();
      } finally {
        await control.close();
      }
    },
  ],
];

describe('a reply with something of another type in it', () => {
  it.each(READERS)('is survived, or ends by a code: %s', async (_, commands, read) => {
    await expect(read(new FakeMonitor((command) => REPLIES[command] ?? {}))).resolves.not.toThrow();
    for (const spoiltCommand of commands) {
      for (const wrong of spoilt(REPLIES[spoiltCommand]!)) {
        const monitor = new FakeMonitor((command) =>
          command === spoiltCommand ? wrong : (REPLIES[command] ?? {}),
        );
        const failure = await read(monitor).then(
          () => undefined,
          (thrown: unknown) => thrown,
        );
        if (failure === undefined || isCheckpointError(failure)) continue;
        throw new Error(`${spoiltCommand} ${JSON.stringify(wrong)}`, { cause: failure });
      }
    }
  });

  it.each([
    'Block Name\n pc.ram    4 KiB  0x0 0xffffffffffffffff 0xffffffffffffffff',
    'Block Name\n pc.ram    4 KiB  0x0 0x1001 0x1001',
    `Block Name\n pc.ram    4 KiB  0x0 0x${'f'.repeat(300)} 0x1000`,
    'Block Name\n a    4 KiB  0x0 0x600000000000 0x1000\n b    4 KiB  0x0 0x600000000000 0x1000',
  ])('is refused where it names memory that no process has', async (table) => {
    await expect(listRamBlocks(new FakeMonitor(() => table))).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
    });
  });
});

it('numbers that JSON cannot hold are none', async () => {
  const reply = parseReply('[{"device": "d", "inserted": {"drv": "raw", "image": {"virtual-size": 1e999}}}]');
  expect(await listDisks(new FakeMonitor(() => reply))).toEqual([
    expect.objectContaining({ virtualSizeBytes: 0 }),
  ]);
});
