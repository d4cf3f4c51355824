/**
 * Compressions in which migration streams lie in files (`migrate "exec:gzip -c >FILE"`, the save images of
 * libvirt), and how they are known by their first bytes.
 */

import { begins } from '../../../src/hypervisor/intake.js';

export interface Compression {
  /** Of the program, and of the compression as libvirt calls it. */
  readonly name: 'gzip' | 'bzip2' | 'xz' | 'lzop' | 'zstd';
  readonly magic: Buffer;
  /** The package of Debian that has the program. */
  readonly packageName: string;
  /** What has the program unpack its standard input; absent of gzip, which Node.js unpacks. */
  readonly args?: readonly string[];
}

/**
 * What xz may take to unpack; its strongest preset takes 65 MiB. Memory is by what the file asks for, up to 4
 * GiB. zstd has such a limit of its own, 128 MiB, and the others have fixed sizes.
 */
const XZ_MEMORY = '--memlimit-decompress=256MiB';

export const COMPRESSIONS: readonly Compression[] = [
  { name: 'gzip', magic: Buffer.from('1f8b08', 'hex'), packageName: 'gzip' },
  { name: 'bzip2', magic: Buffer.from('BZh', 'latin1'), packageName: 'bzip2', args: ['-dc'] },
  {
    name: 'xz',
    magic: Buffer.from('fd377a585a00', 'hex'),
    packageName: 'xz-utils',
    args: ['-dc', XZ_MEMORY],
  },
  {
    name: 'lzop',
    magic: Buffer.from('894c5a4f000d0a1a0a', 'hex'),
    packageName: 'lzop',
    // It warns of what it does not find in a pipe, and ends with a status of its own then.
    args: ['-dc', '--ignore-warn'],
  },
  { name: 'zstd', magic: Buffer.from('28b52ffd', 'hex'), packageName: 'zstd', args: ['-dcq'] },
];

/** By the first bytes; undefined for what is not compressed. */
export function compressionOf(head: Uint8Array): Compression | undefined {
  return COMPRESSIONS.find(({ magic }) => begins(head, magic));
}
