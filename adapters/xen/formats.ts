/** Formats of xl, in which checkpoints are exported and imported. */

import { begins, type ForeignFile, type ImportFormat } from '../../src/hypervisor/intake.js';
import { XL_MAGIC } from './stream/format.js';

/** LIBXL_SAVE_MAGIC of libvirt's libxl_conf.h. */
const LIBVIRT_MAGIC = Buffer.from('libvirt-xml\n \0 \r', 'latin1');

/** `xl`: what `xl save` writes and `xl restore` reads. Disks are not in it. */
export const EXPORT_FORMATS: readonly string[] = ['xl'];

export const IMPORT_FORMATS: readonly ImportFormat[] = [
  {
    name: 'xl',
    what: 'a file of xl save',
    recognise: (head) => (begins(head, XL_MAGIC) ? 'a file of xl save' : undefined),
  },
];

export const FOREIGN_FILES: readonly ForeignFile[] = [
  {
    what: "a save image of libvirt's driver of Xen",
    hint: 'restore the domain and take a checkpoint of it (xen:NAME), or save it with xl save',
    isBegunBy: (head) => begins(head, LIBVIRT_MAGIC),
  },
];
