/** Formats in which checkpoints of domains are exported and imported. */

import type { ImportFormat } from '../../src/hypervisor/intake.js';
import { EXPORT_FORMATS as FORMATS_OF_KVM } from '../kvm/formats.js';
import { IMAGE_COMPRESSIONS } from './restore/compression.js';
import { isSaveImage } from './save-image.js';

/** An image as `virsh save` writes it. */
export const SAVE_IMAGE = 'libvirt';

/** `libvirt`, `libvirt+gzip` and so on, and QEMU's. */
export const EXPORT_FORMATS: readonly string[] = [
  SAVE_IMAGE,
  ...IMAGE_COMPRESSIONS.map(({ program }) => `${SAVE_IMAGE}+${program}`),
  ...FORMATS_OF_KVM,
];

/** However its stream is compressed. */
export const IMPORT_FORMATS: readonly ImportFormat[] = [
  {
    name: SAVE_IMAGE,
    what: 'a save image of libvirt',
    recognise: (head) => (isSaveImage(head) ? 'a save image of libvirt' : undefined),
  },
];
