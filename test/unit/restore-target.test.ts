import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { restoreIntoTarget } from '../../adapters/kvm/restore/target.js';
import { CheckpointError } from '../../src/errors.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FakeQmpServer } from '../support/fake-qmp-server.js';

/** More than a socket takes in before its other end reads. */
const PAGE_COUNT = 4096;
const REQUEST = { setArgs: [], dropArgs: [], paused: false, keepDisks: false };

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-target-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

function source(failure?: Error): CheckpointSource {
  const layout = layOut([{ id: 'pc.ram', sizeBytes: PAGE_COUNT * PAGE_SIZE_BYTES }]);
  const bytes = new Uint8Array(64 * PAGE_SIZE_BYTES).fill(1);
  async function* pages(): AsyncGenerator<PageChunk> {
    for (let firstPage = 0; firstPage < PAGE_COUNT; firstPage += 64) {
      await Promise.resolve();
      if (failure !== undefined && firstPage > 0) throw failure;
      yield { firstPage, pageCount: 64, bytes };
    }
  }
  return {
    checkpointId: 'c1',
    hypervisor: 'kvm',
    machine: {},
    machineType: 'pc-i440fx-7.2',
    layout,
    disks: [],
    deviceState: () => Promise.resolve(new Uint8Array(0)),
    pages,
    pagesAsStored: pages,
  };
}

/** A QEMU that hangs up as soon as the stream has begun, as one of another shape does. */
async function restoreIntoRefusing(from: CheckpointSource): Promise<unknown> {
  const path = join(dir, 'incoming');
  const server = createServer((socket) => {
    socket.once('data', () => socket.destroy());
    socket.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  try {
    return await restoreIntoTarget(from, new Uint8Array(0), `unix:${path}`, REQUEST);
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}

describe('restoring into a QEMU that waits', () => {
  it('says where to look when it hangs up in the middle', async () => {
    await expect(restoreIntoRefusing(source())).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: `the QEMU at unix:${join(dir, 'incoming')} did not take the stream`,
      hint: expect.stringContaining('its own output'),
    });
  });

  it('sends nothing to a monitor', async () => {
    const fake = await FakeQmpServer.start();
    let sentBytes = 0;
    try {
      const restoring = restoreIntoTarget(source(), new Uint8Array(0), `unix:${fake.path}`, {
        ...REQUEST,
        onProgress: (done) => (sentBytes = done),
      });
      await expect(restoring).rejects.toMatchObject({
        code: 'RESTORE_FAILED',
        message: `unix:${fake.path} answers instead of waiting for a stream`,
      });
      expect(sentBytes).toBe(0);
    } finally {
      await fake.stop();
    }
  });

  it('reports damage of the checkpoint as that', async () => {
    const damage = new CheckpointError('REPO_DAMAGED', 'pack 1 is cut off');
    const path = join(dir, 'incoming');
    const server = createServer((socket) => socket.resume().on('error', () => undefined));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await expect(
      restoreIntoTarget(source(damage), new Uint8Array(0), `unix:${path}`, REQUEST),
    ).rejects.toMatchObject({ code: 'REPO_DAMAGED' });
    await new Promise((resolve) => server.close(resolve));
  });
});
