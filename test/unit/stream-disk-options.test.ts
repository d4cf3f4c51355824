import { describe, expect, it } from '@jest/globals';

import { formatCommandLine, parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { diskReferences } from '../../adapters/disks/qcow2/restore-disk-options.js';

const NEW = '/vm/new.qcow2';

function replaced(
  argv: readonly string[],
  path: string,
): { readonly argv: string[]; readonly format: string | undefined } {
  const options = parseCommandLine(argv);
  const found = diskReferences(options, '/vm').find((reference) => reference.path === path);
  if (found === undefined) throw new Error(`${path} not found`);
  return { argv: formatCommandLine(found.replace(options, NEW)), format: found.format };
}

describe('a disk image on a command line', () => {
  it.each<[string, string[], string | undefined, string[]]>([
    ['-hda', ['-hda', '/vm/a.img'], undefined, ['-hda', NEW]],
    ['alone', ['-m', '1G', 'a.img'], undefined, ['-m', '1G', NEW]],
    [
      '-drive',
      ['-drive', 'file=/vm/a.img,format=raw,if=virtio'],
      'raw',
      ['-drive', `file=${NEW},format=qcow2,if=virtio`],
    ],
    [
      '-drive without a format',
      ['-drive', 'if=none,file=a.img'],
      undefined,
      ['-drive', `if=none,file=${NEW},format=qcow2`],
    ],
    [
      '-drive with a driver',
      ['-drive', 'driver=qcow2,file.filename=/vm/a.img,id=d'],
      'qcow2',
      ['-drive', `driver=qcow2,file.filename=${NEW},id=d`],
    ],
    [
      '-blockdev in one',
      ['-blockdev', 'driver=raw,node-name=d,file.driver=file,file.filename=/vm/a.img'],
      'raw',
      ['-blockdev', `driver=qcow2,node-name=d,file.driver=file,file.filename=${NEW}`],
    ],
    [
      '-blockdev in two',
      [
        '-blockdev',
        'driver=file,node-name=f,filename=/vm/a.img',
        '-blockdev',
        'node-name=d,driver=qcow2,file=f,backing=b',
      ],
      'qcow2',
      [
        '-blockdev',
        `driver=file,node-name=f,filename=${NEW}`,
        '-blockdev',
        'node-name=d,driver=qcow2,file=f',
      ],
    ],
    [
      '-blockdev as JSON',
      [
        '-blockdev',
        '{"driver":"file","node-name":"f","filename":"/vm/a.img"}',
        '-blockdev',
        '{"node-name":"d","driver":"raw","file":"f","backing":null}',
      ],
      'raw',
      [
        '-blockdev',
        `{"driver":"file","node-name":"f","filename":"${NEW}"}`,
        '-blockdev',
        '{"node-name":"d","driver":"qcow2","file":"f"}',
      ],
    ],
    [
      '-blockdev as nested JSON',
      ['-blockdev', '{"driver":"qcow2","file":{"driver":"file","filename":"a.img"}}'],
      'qcow2',
      ['-blockdev', `{"driver":"qcow2","file":{"driver":"file","filename":"${NEW}"}}`],
    ],
  ])('is found and replaced as %s', (_, argv, format, expected) => {
    expect(replaced(argv, '/vm/a.img')).toEqual({ argv: expected, format });
  });

  it.each([
    ['-blockdev', 'driver=vmdk,node-name=d,file.driver=file,file.filename=/vm/a.img'],
    ['-blockdev', '{"driver":"raw","offset":"512","file":{"driver":"file","filename":"a.img"}}'],
    ['-blockdev', 'driver=file,node-name=f,filename=/vm/a.img'],
  ])('is refused where qcow2 cannot take its place: %s %s', (...argv) => {
    expect(() => replaced(argv, '/vm/a.img')).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED' }));
  });

  it('is not looked for in what is no disk', () => {
    const options = parseCommandLine([
      '-kernel',
      '/vm/a.img',
      '-chardev',
      'file,id=c,path=/vm/a.img',
      '-drive',
      'if=none,id=cd',
    ]);
    // A drive without a medium, beside what is none.
    expect(diskReferences(options, '/vm').map(({ path }) => path)).toEqual(['']);
  });
});
