import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { sweepRuntimeDir } from '../../adapters/qemu/runtime-files.js';
import { processStartTime } from '../../src/host/process-identity.js';
import { openRuntimeDir } from '../../src/host/runtime-dir.js';

const MARKER = '.cairn-runtime';

let dir: string;
beforeEach(async () => {
  dir = await openRuntimeDir(mkdtempSync(join(tmpdir(), 'cairn-sweep-')));
});
afterEach(() => rmSync(dir, { recursive: true }));

describe('sweeping the runtime folder', () => {
  it('removes what ended processes left, whatever kind of file it is', async () => {
    const dead = `${2 ** 30}-7`;
    for (const name of [
      `ramblocks-${dead}.json`,
      `paused-${dead}.json`,
      `uffd-${dead}.json.4711`,
      `soft-dirty-${dead}.json`,
      `stream-${dead}.json`,
      `a-later-tracker-${dead}.json`,
      `ledger-kvm-${dead.replace('-', '_')}`,
      `ledger-kvm-${dead.replace('-', '_')}.snapshots`,
      `ledger-libvirt-${dead.replace('-', '_')}`,
    ]) {
      writeFileSync(join(dir, name), '{}');
    }
    mkdirSync(join(dir, `restore-${dead}-x1Y2z3`));
    writeFileSync(join(dir, `restore-${dead}-x1Y2z3`, 'stream'), '');
    await sweepRuntimeDir(dir);
    expect(readdirSync(dir)).toEqual([MARKER]);
  });

  it('leaves what belongs to a process that runs, and what belongs to none', async () => {
    const startTime = await processStartTime(process.pid);
    const kept = [
      `uffd-${process.pid}-${startTime}.json`,
      `restore-${process.pid}-${startTime}-abcdef`,
      `ledger-kvm-${process.pid}_${startTime}`,
      'ledger-xen-5_1234',
      'lock-kvm-1073741824_7',
      'notes.txt',
    ].sort();
    for (const name of kept) writeFileSync(join(dir, name), '');
    await sweepRuntimeDir(dir);
    expect(readdirSync(dir).sort()).toEqual([MARKER, ...kept]);
  });

  it('leaves a folder alone that held things of somebody else when Cairn was given it', async () => {
    const shared = join(dir, 'shared');
    mkdirSync(shared, { mode: 0o700 });
    const others = ['backup-2026-11.tar', 'notes-7-1'];
    for (const name of others) writeFileSync(join(shared, name), '');
    await openRuntimeDir(shared);
    await sweepRuntimeDir(shared);
    expect(readdirSync(shared)).toEqual(others);
  });

  it('follows no link', async () => {
    writeFileSync(join(dir, 'target'), '');
    symlinkSync(join(dir, 'target'), join(dir, `uffd-${2 ** 30}-7.json`));
    await sweepRuntimeDir(dir);
    expect(readdirSync(dir)).toHaveLength(3);
  });
});
