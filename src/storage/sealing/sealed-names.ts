/**
 * Names of chains, which are those of VMs, as the storage sees them: encrypted so that the same name gives the same
 * text, and the text gives the name again. All that it shows is the length, in steps of 32 bytes.
 *
 *     padded   length of the name, 1 byte | the name | zeros up to a multiple of 32 bytes
 *     tag      first 16 bytes of HMAC-SHA-256 over it
 *     text     base64url of tag and AES-256-CTR(padded) with the tag as counter; after 240 characters "./"
 */

import { createCipheriv, createHmac, timingSafeEqual } from 'node:crypto';

import type { KeyRing } from './key-ring.js';

const CHAINS = 'vms/';
const STEP = 32;
const TAG = 16;
/** Below the 255 bytes that file systems allow. */
const SEGMENT = 240;
const STORED = /^vms\/([A-Za-z0-9_-]+(?:\.\/[A-Za-z0-9_-]+)?)\/(.*)$/;

export class SealedNames {
  readonly #mac: Buffer;
  readonly #encryption: Buffer;

  constructor(ring: KeyRing) {
    this.#mac = ring.nameKey('mac');
    this.#encryption = ring.nameKey('encryption');
  }

  /** The key under which the storage has an object, or the prefix of such keys. */
  stored(key: string): string {
    const end = key.indexOf('/', CHAINS.length);
    if (!key.startsWith(CHAINS) || end < 0) return key;
    return `${CHAINS}${this.#textOf(key.slice(CHAINS.length, end))}${key.slice(end)}`;
  }

  /** @returns undefined for one that is none of ours */
  plain(stored: string): string | undefined {
    if (!stored.startsWith(CHAINS)) return stored;
    const found = STORED.exec(stored);
    if (found === null) return undefined;
    const name = this.#nameOf(found[1]!.replace('./', ''));
    return name === undefined ? undefined : `${CHAINS}${name}/${found[2]!}`;
  }

  #textOf(name: string): string {
    const padded = Buffer.alloc(STEP * Math.ceil((1 + name.length) / STEP));
    padded[0] = name.length;
    padded.write(name, 1, 'latin1');
    const tag = this.#tagOf(padded);
    const text = Buffer.concat([tag, this.#crypt(tag, padded)]).toString('base64url');
    return text.length <= SEGMENT ? text : `${text.slice(0, SEGMENT)}./${text.slice(SEGMENT)}`;
  }

  #nameOf(text: string): string | undefined {
    const bytes = Buffer.from(text, 'base64url');
    if (bytes.length < TAG + STEP) return undefined;
    const tag = bytes.subarray(0, TAG);
    const padded = this.#crypt(tag, bytes.subarray(TAG));
    if (!timingSafeEqual(tag, this.#tagOf(padded))) return undefined;
    return padded.toString('latin1', 1, 1 + padded[0]!);
  }

  #tagOf(padded: Buffer): Buffer {
    return createHmac('sha256', this.#mac).update(padded).digest().subarray(0, TAG);
  }

  #crypt(tag: Buffer, bytes: Buffer): Buffer {
    return createCipheriv('aes-256-ctr', this.#encryption, tag).update(bytes);
  }
}
