/**
 * Decrypts a repository into a folder, written from docs/format.md alone: shares no code with src/. What it makes is read
 * by the verifier like any other repository. Throws at the first thing that is not as the document says.
 */

import { createDecipheriv, createHash, createHmac, hkdfSync, scryptSync } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

interface Slot {
  readonly id: string;
  readonly kind: string;
  readonly label: string;
  readonly created: string;
  readonly scryptN: number;
  readonly salt: string;
  readonly wrapped: string;
}

const BLOCK = 65536;

/** @param secret the passphrase, or the content of the key file */
export function unseal(repo: string, kind: 'passphrase' | 'key-file', secret: Buffer, out: string): void {
  const keys = openRing(readFileSync(join(repo, 'keys'), 'utf8'), kind, secret);
  const files = readdirSync(repo, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  for (const { parentPath, name } of files) {
    const path = join(parentPath, name);
    const stored = relative(repo, path);
    if (stored === 'keys') continue;
    const key = plainName(keys.get(1)!, stored);
    const to = join(out, key);
    mkdirSync(dirname(to), { recursive: true });
    writeFileSync(to, openObject(keys, key, readFileSync(path)));
  }
}

function openRing(text: string, kind: string, secret: Buffer): ReadonlyMap<number, Buffer> {
  const { format, version, slots, ring } = JSON.parse(text) as {
    readonly format: string;
    readonly version: number;
    readonly slots: readonly Slot[];
    readonly ring: string;
  };
  if (format !== 'cairn-keys' || version !== 1) throw new Error('keys: another format');
  const texts = slots.map(({ id, kind: of, label, created, scryptN, salt }) =>
    JSON.stringify([id, of, label, created, scryptN, salt]),
  );
  const bound = createHash('sha256');
  slots.forEach(({ wrapped }, at) => bound.update(`${texts[at]!} ${wrapped}\n`));
  const digest = bound.digest();
  for (const [at, slot] of slots.entries()) {
    if (slot.kind !== kind) continue;
    const salt = Buffer.from(slot.salt, 'base64');
    const slotKey =
      kind === 'passphrase'
        ? scryptSync(secret, salt, 32, { N: slot.scryptN, r: 8, p: 1, maxmem: 2 ** 30 })
        : hkdf(secret, salt, 'cairn key file');
    const ringKey = unwrap(slotKey, slot.wrapped, Buffer.from(texts[at]!));
    const listed = JSON.parse(unwrap(ringKey, ring, digest).toString()) as { id: number; key: string }[];
    return new Map(listed.map(({ id, key }) => [id, Buffer.from(key, 'base64')]));
  }
  throw new Error(`keys: no ${kind}`);
}

function plainName(first: Buffer, stored: string): string {
  const found = /^vms\/([^/]+(?:\.\/[^/]+)?)\/(.+)$/.exec(stored);
  if (found === null) return stored;
  const text = Buffer.from(found[1]!.replace('./', ''), 'base64url');
  const tag = text.subarray(0, 16);
  const counter = createDecipheriv('aes-256-ctr', hkdf(first, Buffer.alloc(0), 'cairn name encryption'), tag);
  const padded = counter.update(text.subarray(16));
  const mac = createHmac('sha256', hkdf(first, Buffer.alloc(0), 'cairn name mac'))
    .update(padded)
    .digest();
  if (padded.length % 32 !== 0 || !mac.subarray(0, 16).equals(tag)) throw new Error(`${stored}: no name`);
  return `vms/${padded.subarray(1, 1 + padded[0]!).toString('latin1')}/${found[2]!}`;
}

function openObject(keys: ReadonlyMap<number, Buffer>, name: string, stored: Buffer): Buffer {
  if (
    stored.toString('latin1', 0, 8) !== 'CAIRNENC' ||
    stored.readUInt16LE(8) !== 1 ||
    stored.readUInt16LE(10) !== 0
  )
    throw new Error(`${name}: no header`);
  const key = hkdf(keys.get(stored.readUInt32LE(12))!, stored.subarray(16, 48), `cairn object ${name}`);
  const plain: Buffer[] = [];
  let number = 0;
  for (let at = 48; ; at += BLOCK + 16, number++) {
    const block = stored.subarray(at, at + BLOCK + 16);
    const isLast = at + BLOCK + 16 >= stored.length;
    const nonce = Buffer.alloc(12);
    nonce.writeUInt32LE(number, 7);
    nonce[11] = isLast ? 1 : 0;
    plain.push(gcm(key, nonce, block, Buffer.alloc(0)));
    if (isLast) return Buffer.concat(plain);
  }
}

function unwrap(key: Buffer, text: string, bound: Buffer): Buffer {
  const bytes = Buffer.from(text, 'base64');
  return gcm(key, bytes.subarray(0, 12), bytes.subarray(12), bound);
}

function gcm(key: Buffer, nonce: Buffer, bytes: Buffer, bound: Buffer): Buffer {
  const end = bytes.length - 16;
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 }).setAAD(bound);
  decipher.setAuthTag(bytes.subarray(end));
  return Buffer.concat([decipher.update(bytes.subarray(0, end)), decipher.final()]);
}

function hkdf(key: Buffer, salt: Buffer, info: string): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, info, 32));
}
