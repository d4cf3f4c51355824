/** Which file is meant by a name of QEMU, and from which folder a relative path of its command line starts. */

import { describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { foldersOf, relativePaths } from '../../adapters/kvm/inspect/start-folder.js';
import { imagePath } from '../../adapters/qemu/image-names.js';

describe('the name of an image', () => {
  it.each([
    ['/srv/web.qcow2', '/srv/web.qcow2'],
    ['json:{"driver":"qcow2","file":{"driver":"file","filename":"/srv/web.qcow2"}}', '/srv/web.qcow2'],
    [
      'json:{"driver":"qcow2","encrypt.key-secret":"s0","file":{"driver":"file","filename":"/srv/a,b.qcow2"}}',
      '/srv/a,b.qcow2',
    ],
    ['json:{"driver":"qcow2","file.driver":"file","file.filename":"/srv/web.qcow2"}', '/srv/web.qcow2'],
    [
      'json:{"throttle-group":"g","driver":"throttle","file":{"driver":"qcow2","file":{"driver":"file","filename":"/d"}}}',
      '/d',
    ],
  ])('%s is of a file', (name, path) => {
    expect(imagePath(name)).toBe(path);
  });

  it.each([
    ['nbd://host/export'],
    ['json:{"driver":"qcow2","file":{"driver":"host_device","filename":"/dev/sda"}}'],
    ['json:{"driver":"qcow2","file":{"driver":"nbd","server":{"path":"/s","type":"unix"}}}'],
    ['json:{"driver":"quorum","children":[]}'],
    ['json:not json'],
    ['json:[]'],
  ])('%s is of none', (name) => {
    expect(imagePath(name)).toBe(name);
  });
});

describe('the folder that a QEMU was started in', () => {
  const argv = [
    '-drive',
    'file=disks/a,,b.qcow2,if=virtio',
    '-hda',
    'root.img',
    '-pidfile',
    './pid',
    '-kernel',
    '/boot/k',
  ];
  const paths = relativePaths(
    parseCommandLine([...argv, '-blockdev', '{"driver":"file","node-name":"n","filename":"c.raw"}']),
  );

  it('is told by the files that it has open', () => {
    expect([...paths]).toEqual(expect.arrayContaining(['disks/a,b.qcow2', 'root.img', 'pid', 'c.raw']));
    expect([...foldersOf(paths, ['/srv/web/disks/a,b.qcow2', '/srv/web/c.raw', '/dev/kvm'])]).toEqual([
      '/srv/web',
    ]);
    expect([...foldersOf(paths, ['/root.img'])]).toEqual(['/']);
  });

  it('is not told by files of absolute paths, or by two that contradict', () => {
    expect([...foldersOf(paths, ['/boot/k', '/srv/other.img'])]).toEqual([]);
    expect([...foldersOf(paths, ['/srv/root.img', '/mnt/c.raw'])]).toEqual(['/srv', '/mnt']);
  });
});
