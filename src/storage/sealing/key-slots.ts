/**
 * The object `keys`: the keys of a repository, wrapped (docs/format.md, encryption).
 *
 *     secret --scrypt or HKDF--> key of a slot --unwraps--> key of the ring --unwraps--> the keys under which objects are
 *
 * Any one slot opens it. What is not secret of it is bound to the ring's wrapping, so that slots which somebody
 * without a key has added, removed or changed are noticed.
 */

import { createCipheriv, createDecipheriv, createHash, randomBytes, scrypt } from 'node:crypto';
import { promisify } from 'node:util';

import { CheckpointError } from '../../errors.js';
import { damaged } from '../../records/damage.js';
import { parseJson } from '../../records/json-text.js';
import { JsonFields } from '../../records/json-fields.js';
import type { JsonObject } from '../../types.js';
import { KEYS_KEY } from '../keys.js';
import { derive, KEY_BYTES, KeyRing, type DataKey } from './key-ring.js';
import type { Secret } from './secret.js';

export const MAX_KEYS_BYTES = 1 << 20;

const FORMAT = 'cairn-keys';
const VERSION = 1;
/** 128 MiB and about half a second for each guess. */
const SCRYPT_N = 1 << 17;
const SCRYPT_R = 8;
/** What a stranger's `keys` may make this host compute. */
const MOST_SCRYPT_N = 1 << 20;
const HEX8 = /^[0-9a-f]{8}$/;
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;
const TAG_BYTES = 16;
const NONCE_BYTES = 12;

export interface KeySlot {
  readonly id: string;
  readonly kind: Secret['kind'];
  readonly label: string;
  /** ISO 8601. */
  readonly created: string;
  readonly scryptN: number;
  readonly salt: string;
  /** Base64: nonce, the ring's key encrypted, tag. */
  readonly wrapped: string;
}

/** `keys`, opened. */
export interface Unlocked {
  readonly ring: KeyRing;
  readonly ringKey: Buffer;
  readonly slots: readonly KeySlot[];
  /** By which it was opened. */
  readonly slot: KeySlot;
}

/** A new repository's: one slot. */
export async function newKeys(secret: Secret, label: string): Promise<Unlocked> {
  const ringKey = randomBytes(KEY_BYTES);
  const slot = await makeSlot(secret, ringKey, label);
  return { ring: KeyRing.create(), ringKey, slots: [slot], slot };
}

export async function addSlot(unlocked: Unlocked, secret: Secret, label: string): Promise<Unlocked> {
  const slot = await makeSlot(secret, unlocked.ringKey, label);
  return { ...unlocked, slots: [...unlocked.slots, slot] };
}

/** @throws USAGE for a slot that there is not, or the only one */
export function removeSlot(unlocked: Unlocked, id: string): Unlocked {
  const slots = unlocked.slots.filter((slot) => slot.id !== id);
  if (slots.length === unlocked.slots.length)
    throw new CheckpointError('USAGE', `there is no key ${id}`, { hint: 'see "cairn key list"' });
  if (slots.length === 0)
    throw new CheckpointError('USAGE', `${id} is the only key: nobody could read the repository any more`, {
      hint: 'add another one first',
    });
  return { ...unlocked, slots };
}

/**
 * Another key for what is written from now on, and another key of the ring. The only slot left is that of the secret,
 * for the others would need theirs.
 */
export async function rotate(unlocked: Unlocked, secret: Secret): Promise<Unlocked> {
  const ringKey = randomBytes(KEY_BYTES);
  const slot = await makeSlot(secret, ringKey, unlocked.slot.label);
  return { ring: unlocked.ring.withNewKey(), ringKey, slots: [slot], slot };
}

export function encodeKeys({ ring, ringKey, slots }: Unlocked): Uint8Array {
  const keys = ring.keys.map(({ id, key }) => ({ id, key: key.toString('base64') }));
  const listed = slots.map((slot) => ({ ...slot }));
  const wrapped = wrap(ringKey, Buffer.from(JSON.stringify(keys)), slotsDigest(listed));
  const value = { format: FORMAT, version: VERSION, requires: [], slots: listed, ring: wrapped };
  return new Uint8Array(Buffer.from(`${JSON.stringify(value)}\n`));
}

/** @throws KEY_WRONG, REPO_DAMAGED, REPO_VERSION */
export async function openKeys(bytes: Uint8Array, secret: Secret): Promise<Unlocked> {
  const { slots, ring } = readKeys(bytes);
  for (const slot of slots) {
    if (slot.kind !== secret.kind) continue;
    const ringKey = unwrap(await slotKey(secret, slot), slot.wrapped, slotText(slot));
    if (ringKey === undefined) continue;
    const keys = unwrap(ringKey, ring, slotsDigest(slots.map((one) => ({ ...one }))));
    if (keys === undefined) throw damaged(KEYS_KEY, 'somebody without a key has changed it');
    return { ring: ringOf(keys), ringKey, slots, slot };
  }
  throw new CheckpointError('KEY_WRONG', `no key of the repository is opened by this ${secret.kind}`, {
    hint: 'see that it is the right one, and the right repository',
  });
}

/** Without opening it. @throws REPO_DAMAGED, REPO_VERSION */
export function readKeys(bytes: Uint8Array): { readonly slots: readonly KeySlot[]; readonly ring: string } {
  const json = new JsonFields(KEYS_KEY, jsonOf(bytes));
  json.oneOf('format', [FORMAT]);
  if (json.count('version') !== VERSION || json.texts('requires').length > 0)
    throw new CheckpointError('REPO_VERSION', 'the keys of the repository are of a newer version', {
      hint: 'use a newer Cairn',
    });
  const slots = json.list('slots', (slot) => ({
    id: slot.matching('id', HEX8),
    kind: slot.oneOf('kind', ['passphrase', 'key-file'] as const),
    label: slot.text('label'),
    created: slot.text('created'),
    scryptN: slot.count('scryptN'),
    salt: slot.matching('salt', BASE64),
    wrapped: slot.matching('wrapped', BASE64),
  }));
  return { slots, ring: json.matching('ring', BASE64) };
}

function jsonOf(bytes: Uint8Array): JsonObject {
  try {
    const value: unknown = parseJson(Buffer.from(bytes).toString('utf8'));
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as JsonObject;
  } catch {
    // Reported below like any other wrong content.
  }
  throw damaged(KEYS_KEY, 'not a JSON object');
}

async function makeSlot({ kind, bytes }: Secret, ringKey: Buffer, label: string): Promise<KeySlot> {
  const slot = {
    ...{ id: randomBytes(4).toString('hex'), kind, label, created: new Date().toISOString() },
    scryptN: kind === 'passphrase' ? SCRYPT_N : 0,
    ...{ salt: randomBytes(KEY_BYTES).toString('base64'), wrapped: '' },
  };
  return { ...slot, wrapped: wrap(await slotKey({ kind, bytes }, slot), ringKey, slotText(slot)) };
}

async function slotKey({ kind, bytes }: Secret, { scryptN, salt }: KeySlot): Promise<Buffer> {
  const saltBytes = Buffer.from(salt, 'base64');
  if (kind === 'key-file') return derive(bytes, saltBytes, 'cairn key file');
  const isPower = scryptN >= 2 && (scryptN & (scryptN - 1)) === 0;
  if (!isPower || scryptN > MOST_SCRYPT_N)
    throw damaged(KEYS_KEY, `scrypt cannot be used with N = ${scryptN}`);
  const options = { N: scryptN, r: SCRYPT_R, p: 1, maxmem: 256 * scryptN * SCRYPT_R };
  const derived = promisify<Buffer, Buffer, number, object, Buffer>(scrypt);
  return derived(bytes, saltBytes, KEY_BYTES, options);
}

/** All of a slot but what is wrapped in it. */
function slotText({ id, kind, label, created, scryptN, salt }: KeySlot): Buffer {
  return Buffer.from(JSON.stringify([id, kind, label, created, scryptN, salt]));
}

function slotsDigest(slots: readonly KeySlot[]): Buffer {
  const texts = slots.map((slot) => `${slotText(slot).toString('utf8')} ${slot.wrapped}\n`);
  return createHash('sha256').update(texts.join('')).digest();
}

function wrap(key: Buffer, plain: Buffer, bound: Buffer): string {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(bound);
  return Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()]).toString('base64');
}

/** @returns undefined when it was wrapped with another key, or bound to something else */
function unwrap(key: Buffer, wrapped: string, bound: Buffer): Buffer | undefined {
  const bytes = Buffer.from(wrapped, 'base64');
  const end = bytes.length - TAG_BYTES;
  if (end < NONCE_BYTES) return undefined;
  const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, NONCE_BYTES), {
    authTagLength: TAG_BYTES,
  });
  decipher.setAAD(bound).setAuthTag(bytes.subarray(end));
  try {
    return Buffer.concat([decipher.update(bytes.subarray(NONCE_BYTES, end)), decipher.final()]);
  } catch {
    return undefined;
  }
}

/** Authentic, so written by a Cairn. */
function ringOf(bytes: Buffer): KeyRing {
  const keys = JSON.parse(bytes.toString('utf8')) as readonly { readonly id: number; readonly key: string }[];
  return new KeyRing(keys.map(({ id, key }): DataKey => ({ id, key: Buffer.from(key, 'base64') })));
}
