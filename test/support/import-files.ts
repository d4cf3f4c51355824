/** Files as other tools write them, small, for tests of imports. */

import { migrationOf, SMALL_LAYOUT } from '../fuzz/small-machines.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';

const PAGE = 4096;
export const DOMAIN_UUID = '30c526e0-ee48-4b63-8d6a-f7642f082b91';
export const DOMAIN_XML = `<domain type='kvm'>
  <name>web1</name>
  <uuid>${DOMAIN_UUID}</uuid>
  <devices>
    <disk type='file' device='disk'><source file='/srv/web1.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
  </devices>
</domain>`;
const COOKIE = '<savecookie><cpu/></savecookie>';

export interface SaveImageParts {
  readonly magic?: string;
  readonly version?: number;
  readonly wasRunning?: number;
  /** virQEMUSaveFormat */
  readonly format?: number;
  readonly xml?: string;
  readonly bigEndian?: boolean;
  readonly cookie?: boolean;
}

/** A save image of libvirt, written from its description and not by the product. */
export function saveImage(stream: Uint8Array, parts: SaveImageParts = {}): Buffer {
  const { magic = 'LibvirtQemudSave', version = 2, wasRunning = 1, format = 0, xml = DOMAIN_XML } = parts;
  const xmlBytes = Buffer.from(`${xml}\0`);
  const cookie = parts.cookie === false ? Buffer.alloc(0) : Buffer.from(`${COOKIE}\0`);
  const room = Buffer.alloc(64 * 1024);
  const data = Buffer.concat([xmlBytes, cookie, room]);
  const header = Buffer.alloc(92);
  header.write(magic, 0, 'latin1');
  const numbers = [version, data.length, wasRunning, format, cookie.length === 0 ? 0 : xmlBytes.length];
  numbers.forEach((number, i) => {
    if (parts.bigEndian === true) header.writeUInt32BE(number, 16 + 4 * i);
    else header.writeUInt32LE(number, 16 + 4 * i);
  });
  return Buffer.concat([header, data, stream]);
}

/** The small machine of `small-machines.ts` as a mapped-ram file that begins with `front`. */
export async function mappedMigration(front: Uint8Array = new Uint8Array(0)): Promise<Buffer> {
  const plain = await migrationOf(SMALL_LAYOUT, () => noPages());
  const nameAt = plain.indexOf(7) + 5;
  const config = plain.subarray(8, nameAt + plain.readUInt32BE(nameAt - 4));
  const parts: Uint8Array[] = [front, plain.subarray(0, 8), config, capabilities('mapped-ram')];
  let at = parts.reduce((sum, part) => sum + part.length, 0);
  const put = (...more: readonly Uint8Array[]): void => {
    for (const part of more) {
      parts.push(part);
      at += part.length;
    }
  };
  put(
    Buffer.from('0100ffff00', 'hex'),
    Buffer.from('\x03ram', 'latin1'),
    Buffer.from('0000000000000004', 'hex'),
  );
  put(u64(SMALL_LAYOUT.sizeBytes + 4));
  for (const { id, sizeBytes, firstPage, pageCount } of SMALL_LAYOUT.regions) {
    put(Buffer.from([id.length]), Buffer.from(id), u64(sizeBytes));
    const bitmapAt = at + 28;
    const pagesAt = Math.ceil((bitmapAt + 8) / 8192) * 8192;
    put(Buffer.from('00000001', 'hex'), u64(PAGE), u64(bitmapAt), u64(pagesAt));
    const bitmap = Buffer.alloc(8);
    const pages = Buffer.alloc(sizeBytes, 0x55);
    for (let i = 0; i < pageCount; i++) {
      if ((firstPage + i) % 2 === 0) continue;
      bitmap[i >> 3]! |= 1 << (i & 7);
      pages.fill(firstPage + i, i * PAGE, (i + 1) * PAGE);
    }
    put(bitmap, Buffer.alloc(pagesAt - at - 8), pages);
  }
  const eos = Buffer.concat([u64(0x10), Buffer.from('7e00ffff00', 'hex')]);
  // As multifd leaves it: a mark before the end of the list.
  put(u64(0x200), eos, Buffer.from('0300ffff00', 'hex'), u64(0x200), eos);
  put(plain.subarray(plain.indexOf(Buffer.from('0400000003', 'hex'))));
  return Buffer.concat(parts);
}

/** `configuration/capabilities`, as QEMU lists what changes a stream. */
export function capabilities(...names: readonly string[]): Buffer {
  const name = 'configuration/capabilities';
  const count = Buffer.alloc(8);
  count.writeUInt32BE(1, 0);
  count.writeUInt32BE(names.length, 4);
  return Buffer.concat([
    Buffer.from([5, name.length]),
    Buffer.from(name),
    count,
    ...names.flatMap((text) => [Buffer.from([text.length]), Buffer.from(text)]),
  ]);
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* noPages(): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of SMALL_LAYOUT.regions) yield { firstPage, pageCount, bytes: null };
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}
