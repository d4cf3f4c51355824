import {
  chownSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';

import { checkFrozenLayers, withFrozenLayers } from '../../adapters/disks/qcow2/frozen-layers.js';
import { DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import type { ExternalSnapshot } from '../../adapters/disks/qcow2/qcow2-records.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

const LONG_AGO = new Date(1_700_000_000_000);

let dir: string;
let top: string;
let base: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-frozen-'));
  top = join(dir, 'web.qcow2');
  base = join(dir, 'base.qcow2');
  writeFileSync(top, 'what the guest wrote');
  writeFileSync(base, 'what it was installed from');
  // Long ago: a file system's clock is coarse, and a write right after would bear the same time.
  for (const path of [top, base]) utimesSync(path, LONG_AGO, LONG_AGO);
});
afterEach(() => rmSync(dir, { recursive: true }));

function disk(backingPaths: readonly string[]): VmDisk {
  return {
    id: 'hd0',
    path: 'web.qcow2',
    format: 'qcow2',
    writable: true,
    virtualSizeBytes: 1 << 30,
    snapshotModes: ['internal', 'external'],
    backingPaths,
  };
}

const external: ExternalSnapshot = {
  diskId: 'hd0',
  path: 'web.qcow2',
  overlayPath: 'web.cairn-1.qcow2',
};

async function frozen(backingPaths: readonly string[] = [base]): Promise<readonly ExternalSnapshot[]> {
  return withFrozenLayers([external], [disk(backingPaths)], dir);
}

describe('an external snapshot', () => {
  it('records every file of the chain that it froze, by absolute path', async () => {
    const [snapshot] = await frozen();
    expect(snapshot!.frozen).toEqual(
      [top, base].map((path) => ({
        path,
        sizeBytes: statSync(path).size,
        mtimeNs: String(statSync(path, { bigint: true }).mtimeNs),
      })),
    );
  });

  it('leaves out layers that are no files of this host', async () => {
    const [snapshot] = await frozen(['nbd://store/base', 'json:{"driver": "raw"}', '/dev/null']);
    expect(snapshot!.frozen!.map(({ path }) => path)).toEqual([top]);
  });

  it('says which layers it cannot look at, and records the others', async () => {
    const missing = join(dir, 'missing');
    const warn = jest.spyOn(process, 'emitWarning').mockImplementation(() => undefined);
    const [snapshot] = await frozen([missing, base]);
    expect(snapshot!.frozen!.map(({ path }) => path)).toEqual([top, base]);
    expect(warn).toHaveBeenCalledWith(expect.stringContaining(missing));
    warn.mockRestore();
  });
});

describe('an internal snapshot', () => {
  it('freezes nothing: the VM goes on writing to its image', async () => {
    const images = { take: () => Promise.resolve(), drop: () => Promise.resolve() };
    const disks = new DiskDrivers({ cwd: dir, images });
    expect(await disks.snapshot('1', [disk([base])], 'internal')).toEqual([
      {
        diskId: 'hd0',
        path: 'web.qcow2',
        driver: 'internal',
        data: { snapshotName: 'cairn-1', overlayPath: '' },
      },
    ]);
  });
});

describe('frozen files', () => {
  it('may be read, and given to another owner', async () => {
    const snapshots = await frozen();
    readFileSync(top);
    const { uid, gid } = statSync(top);
    chownSync(top, uid, gid);
    await checkFrozenLayers(snapshots);
  });

  it('may be exchanged for copies that keep their times', async () => {
    const snapshots = await frozen();
    copyFileSync(top, `${top}.copy`);
    rmSync(top);
    copyFileSync(`${top}.copy`, top);
    await expect(checkFrozenLayers(snapshots)).rejects.toMatchObject({ code: 'DISK_CHANGED' });
    utimesSync(top, LONG_AGO, LONG_AGO);
    await checkFrozenLayers(snapshots);
  });

  it.each([
    ['written to', (path: string) => writeFileSync(path, 'what the guest w_ote')],
    ['cut off', (path: string) => writeFileSync(path, '')],
    ['removed', (path: string) => rmSync(path)],
  ])('are refused when one below the top was %s', async (_, change) => {
    const snapshots = await frozen();
    change(base);
    await expect(checkFrozenLayers(snapshots)).rejects.toMatchObject({
      code: 'DISK_CHANGED',
      message: expect.stringContaining(base),
      detail: { path: base, disk: 'hd0' },
    });
  });

  it('of a checkpoint that did not record them pass', async () => {
    await checkFrozenLayers([external]);
  });
});
