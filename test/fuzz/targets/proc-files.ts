/**
 * What the kernel and QEMU's human monitor say of a process that chose its own names, paths and options: memory maps, status
 * lines, open files, the table of RAM blocks. Every reader gets every text.
 */

import { parseRamBlockTable } from '../../../adapters/kvm/memory/ram-block-table.js';
import { backingOf, mappingsOf, parseMapping } from '../../../adapters/kvm/memory/process-maps.js';
import { openFlagsOf } from '../../../adapters/qemu/open-flags.js';
import { isCheckpointError } from '../../../src/errors.js';
import { mutateText } from '../mutate-bytes.js';
import { must, type OpenTarget } from '../target.js';

const MAPS = [
  '55d0c0000000-55d0c0100000 r-xp 00000000 fe:01 1234                       /usr/bin/qemu-system-x86_64',
  '7f0000000000-7f0010000000 rw-p 00000000 00:00 0 ',
  '7f0010000000-7f0020000000 rw-s 00001000 00:01 99                         /memfd:a\\012b (deleted)',
  '7f0020000000-7f0020200000 rw-s 00000000 00:0e 5                          /anon_hugepage (deleted)',
  '7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]',
  '',
].join('\n');
const TABLE = [
  '              Block Name    PSize              Offset               Used              Total                HVA  RO',
  '                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f1122200000  rw',
  '     /rom@etc/acpi/tables    2 MiB  0x0000000010000000 0x0000000000020000 0x0000000000200000',
  '',
].join('\r\n');
const FDINFO = 'pos:\t0\nflags:\t02140002\nmnt_id:\t28\nino:\t1\n';

const WORDS = [
  ...[
    '\n',
    '\r',
    ' ',
    '\t',
    '-',
    '0x',
    'ffffffffffffffff',
    'rw-p',
    '(deleted)',
    '\\012',
    '/memfd:',
    '00:00',
    '[heap]',
  ],
  ...['KiB', 'TiB', 'B', ' r', 'flags:', 'pc.ram', '/anon_hugepage', '99999999999999999999'],
];

export const openTarget: OpenTarget = () =>
  Promise.resolve({
    seeds: [MAPS, TABLE, FDINFO].map((text) => Buffer.from(text, 'latin1')),
    mutate: mutateText(WORDS),
    run: (input) => {
      const text = Buffer.from(input).toString('latin1');
      const maps = text.split('\n').flatMap((line) => parseMapping(line) ?? []);
      for (const { start, end } of maps) {
        const found = mappingsOf(maps, start, end);
        if (found !== undefined && found.length > 0) backingOf(found);
      }
      must(openFlagsOf(text) >= 0, 'flags are a number');
      let rows = 0;
      try {
        rows = parseRamBlockTable(text).length;
      } catch (error) {
        if (!isCheckpointError(error)) throw error;
      }
      return Promise.resolve(`maps ${Math.min(maps.length, 8)} rows ${Math.min(rows, 4)}`);
    },
  });
