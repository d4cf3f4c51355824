/**
 * An encrypted object (docs/format.md, encryption):
 *
 *     header, 48 bytes | block 0 | block 1 | ... | last block
 *
 * A block is 65536 bytes of the object, the last one fewer or none, under AES-256-GCM with its tag behind it. The key
 * is of this object alone: it is derived from the key of the repository, 32 random bytes of the header, and the
 * object's name. The nonce is the block's number, and whether it is the last. So no block can be moved, swapped,
 * repeated, left out, or shown under another name, and a range is read without the rest.
 */

import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';

import { damaged } from '../../records/damage.js';
import { derive, type KeyRing } from './key-ring.js';

export const HEADER_BYTES = 48;
export const BLOCK_BYTES = 65536;
export const TAG_BYTES = 16;
const STORED_BLOCK_BYTES = BLOCK_BYTES + TAG_BYTES;
const MAGIC = 'CAIRNENC';
const VERSION = 1;
const SALT_AT = 16;

export interface ObjectKey {
  readonly key: Buffer;
}

/** A new header, and the key that belongs to it. */
export function newHeader(ring: KeyRing, name: string): { readonly header: Buffer; readonly key: Buffer } {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(MAGIC, 0, 'latin1');
  header.writeUInt16LE(VERSION, 8);
  header.writeUInt32LE(ring.current.id, 12);
  randomBytes(HEADER_BYTES - SALT_AT).copy(header, SALT_AT);
  return { header, key: objectKey(ring.current.key, header, name) };
}

/** @throws REPO_DAMAGED for anything that is no header, or names a key that there is not */
export function readHeader(ring: KeyRing, name: string, header: Uint8Array): Buffer {
  const bytes = Buffer.from(header.buffer, header.byteOffset, header.byteLength);
  const isHeader =
    bytes.length === HEADER_BYTES &&
    bytes.toString('latin1', 0, 8) === MAGIC &&
    bytes.readUInt16LE(8) === VERSION &&
    bytes.readUInt16LE(10) === 0;
  if (!isHeader) throw damaged(name, 'it is not encrypted, as all of this repository is');
  const key = ring.find(bytes.readUInt32LE(12));
  if (key === undefined) throw damaged(name, `it needs key ${bytes.readUInt32LE(12)}, which there is not`);
  return objectKey(key, bytes, name);
}

/** Encrypts a body, chunk by chunk. */
export async function* sealBody(
  ring: KeyRing,
  name: string,
  body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const { header, key } = newHeader(ring, name);
  yield header;
  let block = Buffer.allocUnsafe(BLOCK_BYTES);
  let filled = 0;
  let number = 0;
  for await (const chunk of body) {
    for (let at = 0; at < chunk.length;) {
      // Whether a full block is the last is known only when something follows.
      if (filled === BLOCK_BYTES) {
        yield sealBlock(key, number++, false, block);
        block = Buffer.allocUnsafe(BLOCK_BYTES);
        filled = 0;
      }
      // A copy less, for what is most of a pack.
      if (filled === 0 && chunk.length - at > BLOCK_BYTES) {
        yield sealBlock(key, number++, false, chunk.subarray(at, at + BLOCK_BYTES));
        at += BLOCK_BYTES;
        continue;
      }
      const count = Math.min(chunk.length - at, BLOCK_BYTES - filled);
      block.set(chunk.subarray(at, at + count), filled);
      filled += count;
      at += count;
    }
  }
  yield sealBlock(key, number, true, block.subarray(0, filled));
}

/**
 * Decrypts blocks that follow one another.
 * @param first number of the first
 * @param last number of the last block of the object
 * @throws REPO_DAMAGED
 */
export function openBlocks(
  key: Buffer,
  name: string,
  stored: Uint8Array,
  first: number,
  last: number,
): Uint8Array {
  const count = Math.max(1, Math.ceil(stored.length / STORED_BLOCK_BYTES));
  const plain = new Uint8Array(Math.max(0, stored.length - count * TAG_BYTES));
  for (let at = 0; at < count; at++) {
    const block = stored.subarray(at * STORED_BLOCK_BYTES, (at + 1) * STORED_BLOCK_BYTES);
    plain.set(openBlock(key, name, first + at, first + at === last, block), at * BLOCK_BYTES);
  }
  return plain;
}

/** Number of the last block of an object of this length as stored. */
export function lastBlock(storedBytes: number): number {
  return Math.max(0, Math.ceil((storedBytes - HEADER_BYTES) / STORED_BLOCK_BYTES) - 1);
}

/** Length of the object in an object of this length as stored; 0 for what can be none. */
export function plainBytes(storedBytes: number): number {
  return Math.max(0, storedBytes - HEADER_BYTES - (lastBlock(storedBytes) + 1) * TAG_BYTES);
}

/** Where blocks lie as stored. */
export function storedRange(
  first: number,
  last: number,
  storedBytes: number,
): { readonly offsetBytes: number; readonly lengthBytes: number } {
  const offsetBytes = HEADER_BYTES + first * STORED_BLOCK_BYTES;
  const end = Math.min(storedBytes, HEADER_BYTES + (last + 1) * STORED_BLOCK_BYTES);
  return { offsetBytes, lengthBytes: Math.max(0, end - offsetBytes) };
}

function objectKey(key: Buffer, header: Buffer, name: string): Buffer {
  return derive(key, header.subarray(SALT_AT), `cairn object ${name}`);
}

function sealBlock(key: Buffer, number: number, isLast: boolean, plain: Uint8Array): Buffer {
  const cipher = createCipheriv('aes-256-gcm', key, nonceOf(number, isLast));
  const body = cipher.update(plain);
  return Buffer.concat([body, cipher.final(), cipher.getAuthTag()]);
}

function openBlock(key: Buffer, name: string, number: number, isLast: boolean, stored: Uint8Array): Buffer {
  const bodyBytes = stored.length - TAG_BYTES;
  if (bodyBytes < 0) throw damaged(name, 'it ends in the middle of a block', { block: number });
  const decipher = createDecipheriv('aes-256-gcm', key, nonceOf(number, isLast), {
    authTagLength: TAG_BYTES,
  });
  decipher.setAuthTag(stored.subarray(bodyBytes));
  try {
    const body = decipher.update(stored.subarray(0, bodyBytes));
    decipher.final();
    return body;
  } catch (cause) {
    throw damaged(name, 'it is not what was written under this name', { block: number }, cause);
  }
}

/** 12 bytes: zeros, the number as 4, and 1 for the last block. */
function nonceOf(number: number, isLast: boolean): Buffer {
  const nonce = Buffer.alloc(12);
  nonce.writeUInt32LE(number, 7);
  nonce[11] = isLast ? 1 : 0;
  return nonce;
}
