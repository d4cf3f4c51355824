/** Formats in which checkpoints of domains are exported. */

import { EXPORT_FORMATS as FORMATS_OF_KVM } from '../kvm/formats.js';
import { IMAGE_COMPRESSIONS } from './restore/compression.js';

/** An image as `virsh save` writes it. */
export const SAVE_IMAGE = 'libvirt';

/** `libvirt`, `libvirt+gzip` and so on, and QEMU's. */
export const EXPORT_FORMATS: readonly string[] = [
  SAVE_IMAGE,
  ...IMAGE_COMPRESSIONS.map(({ program }) => `${SAVE_IMAGE}+${program}`),
  ...FORMATS_OF_KVM,
];
