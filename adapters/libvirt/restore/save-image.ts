/**
 * The save image of libvirt's QEMU driver (qemu_saveimage.h): what `virsh save` writes and `virsh restore`
 * reads.
 *
 *     0   16  "LibvirtQemudSave"            all numbers little-endian
 *     16  u32 version, 2
 *     20  u32 length of the data below
 *     24  u32 1: the domain ran
 *     28  u32 compression of the stream (compression.ts), 0: none
 *     32  u32 offset of the cookie in the data, 0: none
 *     36  14 x u32 unused
 *     92  data: domain XML, NUL, zeros (room for virsh save-image-edit)
 *     ..  QEMU's migration stream
 */

const MAGIC = 'LibvirtQemudSave';
const VERSION = 2;
const HEADER_BYTES = 92;
/** Room for a longer XML, as much as libvirt itself leaves. */
const ROOM_BYTES = 64 * 1024;

/** Everything in front of the stream, never compressed. Caller owns it. */
export function saveImageHead(domainXml: string, compression = 0): Buffer {
  const xml = Buffer.from(domainXml, 'utf8');
  const dataBytes = xml.length + 1 + ROOM_BYTES;
  const head = Buffer.alloc(HEADER_BYTES + dataBytes);
  head.write(MAGIC, 0, 'latin1');
  head.writeUInt32LE(VERSION, 16);
  head.writeUInt32LE(dataBytes, 20);
  head.writeUInt32LE(1, 24);
  head.writeUInt32LE(compression, 28);
  xml.copy(head, HEADER_BYTES);
  return head;
}
