/**
 * What of a migration stream cannot be read, in the words of whoever can switch it off. Source: QEMU 7.2 to
 * 10.0.
 */

import { RAM_FLAG } from './format.js';

/** First bytes of what is no stream. `MULTIFD_MAGIC` of migration/multifd.h. */
const MULTIFD_MAGIC = 0x11223344;

export function namedStart(magic: number): string {
  if (magic !== MULTIFD_MAGIC) return 'it does not start with "QEVM"';
  return 'it is one of the channels of a migration by multifd; switch the capability multifd off';
}

const RECORDS: Readonly<Record<number, string>> = {
  [RAM_FLAG.XBZRLE]: 'an XBZRLE record; switch the capability xbzrle off',
  [RAM_FLAG.COMPRESS_PAGE]: 'a compressed page; switch the capability compress off',
  [RAM_FLAG.MULTIFD_FLUSH]: 'a multifd mark; switch the capability multifd off',
  [RAM_FLAG.HOOK]: 'an RDMA record; migrate to a file',
};

export function namedRecord(kind: number): string {
  return RECORDS[kind] ?? `a record of unknown kind 0x${kind.toString(16)}`;
}

/** Sections beside "ram" that are sent while the VM runs. */
const LIVE_SECTIONS: Readonly<Record<string, string>> = {
  block: 'the contents of disks; migrate without -b and -i (blk, inc)',
  'dirty-bitmap': 'the dirty bitmaps of disks; switch the capability dirty-bitmaps off',
};

export function namedSection(name: string): string {
  const known = LIVE_SECTIONS[name];
  if (known !== undefined) return known;
  return `the section "${name}" is sent live, which is not supported (a device of the host, such as VFIO)`;
}

/** enum qemu_vm_cmd of migration/savevm.h. */
const COMMANDS: Readonly<Record<number, string>> = {
  1: 'the mark of a return path; switch the capability return-path off',
  2: 'a ping of a return path; switch the capability return-path off',
  3: 'postcopy; switch the capability postcopy-ram off',
  4: 'postcopy; switch the capability postcopy-ram off',
  5: 'postcopy; switch the capability postcopy-ram off',
  6: 'postcopy; switch the capability postcopy-ram off',
  7: 'postcopy; switch the capability postcopy-ram off',
  8: 'COLO; switch the capability x-colo off',
  9: 'postcopy; switch the capability postcopy-ram off',
  10: 'postcopy; switch the capability postcopy-ram off',
};

export function namedCommand(command: number): string {
  return COMMANDS[command] ?? `the unknown command ${command}`;
}
