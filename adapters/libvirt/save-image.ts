/**
 * The save image of libvirt's QEMU driver (qemu_saveimage.h): what `virsh save` writes and `virsh restore`
 * reads.
 *
 *     0   16  "LibvirtQemudSave", or "LibvirtQemudPart" until it is whole
 *     16  u32 version, 2 (1: the stream is not compressed)
 *     20  u32 length of the data below
 *     24  u32 1: the domain ran
 *     28  u32 format of the stream (`STREAM_FORMATS`), 0: as QEMU writes it
 *     32  u32 offset of the cookie in the data, 0: none
 *     36  14 x u32 unused
 *     92  data: domain XML, NUL, the cookie, NUL, zeros (room for virsh save-image-edit)
 *     ..  QEMU's migration stream
 *
 * Numbers are in the byte order of the host that wrote it. Ours are little-endian.
 */

import { CheckpointError } from '../../src/errors.js';
import type { HeadedBytes } from '../../src/hypervisor/byte-source.js';
import type { Compression } from '../qemu/packed/compressions.js';

const MAGIC = 'LibvirtQemudSave';
const MAGIC_OF_PART = 'LibvirtQemudPart';
const VERSION = 2;
const HEADER_BYTES = 92;
/** Room for a longer XML, as much as libvirt itself leaves. */
const ROOM_BYTES = 64 * 1024;
/** XML of at most 4 MiB (MAX_XML_CHARS), a cookie with the CPU in it, and the room. */
const MAX_DATA_BYTES = 16 << 20;

/**
 * virQEMUSaveFormat, by number. libvirt 9.0 knows those up to lzop. A sparse one is a mapped-ram file, in
 * which places count from the start of the image.
 */
export const STREAM_FORMATS: readonly ('raw' | 'sparse' | Compression['name'])[] = [
  'raw',
  'gzip',
  'bzip2',
  'xz',
  'lzop',
  'zstd',
  'sparse',
];

export interface SaveImageHead {
  readonly domainXml: string;
  readonly wasRunning: boolean;
  readonly streamFormat: (typeof STREAM_FORMATS)[number];
  /** Where the stream begins. */
  readonly sizeBytes: number;
}

/** True of a file that libvirt has finished, and of one that it has not. */
export function isSaveImage(head: Uint8Array): boolean {
  return [MAGIC, MAGIC_OF_PART].includes(Buffer.from(head).toString('latin1', 0, MAGIC.length));
}

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

/**
 * Takes everything in front of the stream. The cookie is left out: it is what libvirt compares the CPU with.
 * @throws STREAM_MALFORMED
 */
export async function readSaveImageHead(source: HeadedBytes): Promise<SaveImageHead> {
  const header = Buffer.from(await source.take(HEADER_BYTES));
  const magic = header.toString('latin1', 0, MAGIC.length);
  if (magic === MAGIC_OF_PART) throw malformed('libvirt has not finished it', 'save the domain once more');
  if (magic !== MAGIC) throw malformed('it does not start with "LibvirtQemudSave"');
  if (header.length < HEADER_BYTES) throw malformed('it ends in its header');
  const { version, dataBytes, wasRunning, format, cookieAt } = numbersIn(header);
  if (version === 0 || version > VERSION)
    throw malformed(
      `version ${version} of its format is not known`,
      'export it with a libvirt that writes version 2',
    );
  const streamFormat = version === 1 ? 'raw' : STREAM_FORMATS[format];
  if (streamFormat === undefined) {
    throw malformed(
      `its stream is of the unknown format ${format}`,
      `known: ${STREAM_FORMATS.join(', ')}; set save_image_format in qemu.conf to one of them and save the domain again`,
    );
  }
  if (dataBytes === 0 || dataBytes > MAX_DATA_BYTES || cookieAt > dataBytes)
    throw malformed('the length of its domain XML is not sensible');
  const data = Buffer.from(await source.take(dataBytes));
  if (data.length < dataBytes) throw malformed('it ends in its domain XML');
  const end = data.subarray(0, cookieAt === 0 ? dataBytes : cookieAt).indexOf(0);
  if (end <= 0) throw malformed('its domain XML has no end');
  return {
    domainXml: data.toString('utf8', 0, end),
    wasRunning: wasRunning !== 0,
    streamFormat,
    sizeBytes: HEADER_BYTES + dataBytes,
  };
}

function numbersIn(
  header: Buffer,
): Readonly<Record<'version' | 'dataBytes' | 'wasRunning' | 'format' | 'cookieAt', number>> {
  // As libvirt tells: a version that is too high may be one of the other byte order.
  const isSwapped = header.readUInt32LE(16) > VERSION && header.readUInt32BE(16) <= VERSION;
  const at = (place: number): number => (isSwapped ? header.readUInt32BE(place) : header.readUInt32LE(place));
  return { version: at(16), dataBytes: at(20), wasRunning: at(24), format: at(28), cookieAt: at(32) };
}

function malformed(what: string, hint?: string): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `the save image cannot be used: ${what}`, {
    hint: hint ?? 'is it whole, as virsh save writes it?',
  });
}
