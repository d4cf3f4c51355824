import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import {
  finishStream,
  recoverStream,
  setStreamMarker,
} from '../../adapters/kvm/trackers/qmp-stream/stream-marker.js';
import type { Json } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';

const putBack = { capabilities: [{ capability: 'xbzrle', state: true }], parameters: { 'max-bandwidth': 5 } };
const SETTINGS = ['migrate-set-capabilities', 'migrate-set-parameters'];

let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-marker-'));
  path = join(dir, 'stream');
});
afterEach(() => rmSync(dir, { recursive: true }));

/** A VM with a migration in that state, until it is cancelled. */
function vmThatMigrates(status: string, runStates: readonly string[] = ['running']): FakeMonitor {
  const left = [...runStates];
  let migration = status;
  return new FakeMonitor((command): Json => {
    if (command === 'migrate_cancel') migration = 'cancelled';
    if (command === 'query-migrate') return { status: migration };
    if (command === 'query-status') return { status: left.length > 1 ? left.shift()! : left[0]! };
    return {};
  });
}

/** As a Cairn that has ended since. */
function leave(isOver: boolean): void {
  setStreamMarker(path, { attachment: 'a', putBack, isOver });
  const marker = JSON.parse(readFileSync(path, 'utf8')) as object;
  writeFileSync(path, JSON.stringify({ ...marker, startTime: 'another' }));
}

describe('what a stream leaves behind', () => {
  it('is a migration that is cancelled, a VM that runs again and settings that come back', async () => {
    leave(false);
    const monitor = vmThatMigrates('pre-switchover', ['finish-migrate', 'postmigrate']);
    expect(await recoverStream(path, monitor)).toBe(true);
    const changes = monitor.commands.filter((command) => !command.startsWith('query-'));
    expect(changes).toEqual(['migrate_cancel', 'cont', ...SETTINGS]);
    expect(existsSync(path)).toBe(false);
  });

  it('is no more than settings once the stream is over: nothing is cancelled or continued', async () => {
    leave(true);
    const monitor = vmThatMigrates('active', ['postmigrate']);
    await finishStream(path, monitor);
    expect(monitor.commands).toEqual(SETTINGS);
  });

  it('waits while somebody else migrates the VM', async () => {
    leave(true);
    const monitor = vmThatMigrates('active');
    expect(await recoverStream(path, monitor)).toBe(false);
    expect(monitor.commands).toEqual(['query-migrate']);
    expect(existsSync(path)).toBe(true);
  });

  it('is left to the Cairn that still lives', async () => {
    setStreamMarker(path, { attachment: 'a', putBack, isOver: false });
    const monitor = vmThatMigrates('active');
    expect(await recoverStream(path, monitor)).toBe(false);
    expect(monitor.commands).toEqual([]);
  });

  it('is nothing when the marker was cut off while it was written', async () => {
    writeFileSync(path, '{"pid":1,');
    const monitor = vmThatMigrates('active');
    expect(await recoverStream(path, monitor)).toBe(false);
    await finishStream(path, monitor);
    expect(monitor.commands).toEqual([]);
  });
});
