/**
 * Encrypts the kept repository of version 1. What it made is kept in `encrypted-v1` and never written again:
 *
 *     node dist/test/golden/make-encrypted.js test/golden/repository-v1/repo test/golden/encrypted-v1
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { FileBackend } from '../../src/storage/file.js';
import { addSlot, newKeys, encodeKeys, openKeys, rotate } from '../../src/storage/sealing/key-slots.js';
import { SealedBackend } from '../../src/storage/sealing/sealed-backend.js';
import { passphrase } from '../../src/storage/sealing/secret.js';

const [from, to] = process.argv.slice(2) as [string, string];
mkdirSync(to, { recursive: true });
const file = Buffer.from(Array.from({ length: 32 }, (_, at) => at));
writeFileSync(join(to, 'key'), file);
const secret = passphrase('correct horse');
const before = await newKeys(secret, 'first');
const after = await addSlot(await rotate(before, secret), { kind: 'key-file', bytes: file }, 'a key file');
const plain = new FileBackend(from);
const inner = new FileBackend(join(to, 'repo'));
await inner.save('keys', encodeKeys(after));
await openKeys(await inner.load('keys'), secret);
const backends = [new SealedBackend(inner, before.ring), new SealedBackend(inner, after.ring)];
// Half of it was written before the keys were rotated.
for (const [at, { key }] of (await plain.list('')).entries())
  await backends[at % 2]!.save(key, await plain.load(key));
