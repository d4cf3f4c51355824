/** The keys under which the objects of a repository are encrypted. They are in memory only, and wrapped in `keys`. */

import { hkdfSync, randomBytes } from 'node:crypto';

export interface DataKey {
  /** From 1. An object names the key that it needs. */
  readonly id: number;
  /** 32 bytes. */
  readonly key: Buffer;
}

export const KEY_BYTES = 32;

export class KeyRing {
  /** @param keys ascending by id, at least one */
  constructor(readonly keys: readonly DataKey[]) {}

  static create(): KeyRing {
    return new KeyRing([{ id: 1, key: randomBytes(KEY_BYTES) }]);
  }

  /** New objects get this one. */
  get current(): DataKey {
    return this.keys.at(-1)!;
  }

  withNewKey(): KeyRing {
    return new KeyRing([...this.keys, { id: this.current.id + 1, key: randomBytes(KEY_BYTES) }]);
  }

  find(id: number): Buffer | undefined {
    return this.keys.find((one) => one.id === id)?.key;
  }

  /** For names of chains. Of the first key, since names outlast a rotation. */
  nameKey(use: 'mac' | 'encryption'): Buffer {
    return derive(this.keys[0]!.key, Buffer.alloc(0), `cairn name ${use}`);
  }
}

/** HKDF-SHA-256 (RFC 5869), 32 bytes. */
export function derive(key: Buffer, salt: Uint8Array, info: string): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, info, KEY_BYTES));
}
