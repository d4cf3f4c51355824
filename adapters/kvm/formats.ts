/** Formats of QEMU's own tools, in which checkpoints are exported and imported. */

import { begins, type ForeignFile, type ImportFormat } from '../../src/hypervisor/intake.js';
import { compressionOf } from '../qemu/packed/compressions.js';
import { STREAM_MAGIC } from '../qemu/stream/format.js';

/**
 * `qemu`: a complete migration stream. A QEMU with the same machine type, memory size and devices loads it
 * with `-incoming 'exec:cat FILE'`, from 8.2 on also with `-incoming file:FILE`; with -S it stays stopped.
 * Disks are not in it.
 */
export const EXPORT_FORMATS: readonly string[] = ['qemu'];

const STREAM = 'a migration stream of QEMU';

/** A compressed file is taken for a compressed stream. */
export const IMPORT_FORMATS: readonly ImportFormat[] = [
  {
    name: 'qemu',
    what: STREAM,
    recognise: (head) => {
      if (begins(head, magic(STREAM_MAGIC))) return STREAM;
      const compression = compressionOf(head);
      return compression === undefined ? undefined : `a file compressed by ${compression.name}`;
    },
  },
];

export const FOREIGN_FILES: readonly ForeignFile[] = [
  {
    what: 'a qcow2 image',
    hint: 'have QEMU load the snapshot in it (loadvm) and take a checkpoint of the VM',
    isBegunBy: (head) => begins(head, Buffer.from('QFI\xfb', 'latin1')),
  },
  {
    what: 'a dump of memory (virsh dump, dump-guest-memory) without the state of devices',
    hint: 'nothing can restore it; save the VM by virsh save, or by migrate "exec:cat >FILE"',
    isBegunBy: (head) =>
      [Buffer.from('\x7fELF', 'latin1'), Buffer.from('KDUMP   ', 'latin1')].some((start) =>
        begins(head, start),
      ),
  },
];

function magic(number: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
}
