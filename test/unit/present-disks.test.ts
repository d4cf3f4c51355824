import { describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import {
  pairDisks,
  strayDisks,
  withPresentDisks,
  type DiskPicture,
  type ListedDisk,
} from '../../adapters/kvm/inspect/present-disks.js';

const CWD = '/nowhere';

function disk(drive: string, path: string, more: Partial<ListedDisk> = {}): ListedDisk {
  const format = path === '' ? '' : 'qcow2';
  return { device: `/machine/${drive}`, drive, path, format, readOnly: false, backingPaths: [], ...more };
}

function paired(argv: readonly string[], ...found: readonly ListedDisk[]): Promise<DiskPicture> {
  return pairDisks(found, parseCommandLine(argv), CWD);
}

async function restored(
  argv: readonly string[],
  ...found: readonly ListedDisk[]
): Promise<readonly string[]> {
  const { disks, problems } = await paired(argv, ...found);
  expect(problems).toEqual([]);
  return withPresentDisks(parseCommandLine(argv), CWD, disks).map(({ value = '' }) => value);
}

describe('the disks that a VM has now, beside its command line,', () => {
  const DRIVE = ['-drive', 'file=/a.qcow2,if=none,id=d0,format=qcow2'];

  it('leave it as it is where it names them', async () => {
    expect(await restored(DRIVE, disk('d0', '/a.qcow2'))).toEqual([DRIVE[1]]);
  });

  it('stand in the option of their drive when they have moved', async () => {
    expect(await restored(DRIVE, disk('d0', '/b.img', { format: 'raw' }))).toEqual([
      'file=/b.img,if=none,id=d0,format=raw',
    ]);
  });

  it('are found by what they stand on where no drive has a name', async () => {
    const argv = ['-hda', '/a.qcow2', '-hdb', '/other.qcow2'];
    const top = disk('ide0-hd0', '/top.qcow2', { backingPaths: ['/a.qcow2'] });
    expect(await restored(argv, top, disk('ide0-hd1', '/other.qcow2'))).toEqual([
      '/top.qcow2',
      '/other.qcow2',
    ]);
  });

  it('empty the drive whose medium was ejected', async () => {
    const argv = ['-cdrom', '/a.iso'];
    expect(await restored(argv, disk('ide1-cd0', ''))).toEqual(['index=2,media=cdrom']);
  });

  it('do not take a node for a backing file for the medium of an empty drive', async () => {
    const argv = [
      ...['-blockdev', 'driver=qcow2,node-name=base,file.driver=file,file.filename=/base.qcow2'],
      ...['-blockdev', 'driver=qcow2,node-name=top,backing=base,file.driver=file,file.filename=/top.qcow2'],
    ];
    const top = disk('', '/top.qcow2', { backingPaths: ['/base.qcow2'] });
    expect((await paired(argv, top, disk('cd', ''))).problems).toEqual([]);
  });

  it('are named where no option can name them', async () => {
    const { problems } = await paired(DRIVE, disk('d0', '/a.qcow2'), disk('', '/added.qcow2'));
    expect(problems).toEqual([expect.stringContaining('/added.qcow2')]);
  });
});

describe('the disks that a new QEMU has', () => {
  const expected = [disk('d0', '/a.qcow2'), disk('cd0', '', { readOnly: true })];
  const stray = (...found: readonly ListedDisk[]): Promise<readonly string[]> =>
    strayDisks(expected, found, { cwd: CWD, instead: new Map(), edits: [] });

  it('are those of the checkpoint', async () => {
    expect(await stray(disk('d0', '/a.qcow2'), disk('cd0', ''))).toEqual([]);
  });

  it('are others when they have another image, none, or may be written where they might not', async () => {
    const empty = disk('cd0', '', { readOnly: true });
    expect(await stray(disk('d0', '/b.qcow2'), empty)).toEqual([expect.stringContaining('/b.qcow2')]);
    expect(await stray(empty)).toEqual([expect.stringContaining('/a.qcow2')]);
    expect(await stray(disk('d0', '/a.qcow2', { readOnly: true }), empty)).toEqual([
      expect.stringContaining('cannot be written'),
    ]);
  });
});
