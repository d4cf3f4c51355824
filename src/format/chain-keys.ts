/** Keys of the objects of a repository (docs/format.md, objects and keys). */

import { createHash } from 'node:crypto';

import { CheckpointError } from '../errors.js';
import { isKeySegment } from '../storage/keys.js';

export const CONFIG_KEY = 'config';
export const CHAINS_PREFIX = 'vms/';

/** Leaves room below the 255 bytes that file systems allow. */
const MAX_SEGMENT_LENGTH = 200;
const KEPT_OF_LONG_NAME = 120;

/**
 * The folder name of a chain: letters, digits and "-" as they are, "." except in front, all other bytes of
 * the UTF-8 form as "_" and two hex digits. A name too long for a file name is cut and completed by "_h" and
 * a hash of the whole.
 * @throws USAGE for an empty name
 */
export function chainKey(vmName: string): string {
  if (vmName === '')
    throw new CheckpointError('USAGE', 'a chain needs a name', { hint: 'give one with --name' });
  let escaped = '';
  for (const byte of Buffer.from(vmName, 'utf8')) {
    const char = String.fromCharCode(byte);
    const isPlain = /[A-Za-z0-9-]/.test(char) || (char === '.' && escaped !== '');
    escaped += isPlain ? char : `_${byte.toString(16).padStart(2, '0')}`;
  }
  if (escaped.length <= MAX_SEGMENT_LENGTH) return escaped;
  const hash = createHash('sha256').update(vmName, 'utf8').digest('hex').slice(0, 32);
  return `${escaped.slice(0, KEPT_OF_LONG_NAME)}_h${hash}`;
}

/** The chain that an object belongs to, undefined for one that belongs to none. */
export function chainOfKey(key: string): string | undefined {
  const [top, chain, rest] = key.split('/');
  return top === 'vms' && chain !== undefined && rest !== undefined && isKeySegment(chain)
    ? chain
    : undefined;
}

export class ChainKeys {
  readonly prefix: string;
  readonly vm: string;
  readonly locks: string;
  readonly beats: string;
  readonly packs: string;
  readonly index: string;
  readonly checkpoints: string;
  readonly reserves: string;

  constructor(readonly chain: string) {
    this.prefix = `${CHAINS_PREFIX}${chain}/`;
    this.vm = `${this.prefix}vm`;
    this.locks = `${this.prefix}locks/`;
    this.beats = `${this.prefix}beats/`;
    this.packs = `${this.prefix}packs/`;
    this.index = `${this.prefix}index/`;
    this.checkpoints = `${this.prefix}checkpoints/`;
    this.reserves = `${this.prefix}reserve/`;
  }

  lock(nonce: string): string {
    return `${this.locks}${nonce}`;
  }
  reserve(number: number): string {
    return `${this.reserves}${number}`;
  }
  /** Prefix of the beats of a lock. */
  beatsOf(nonce: string): string {
    return `${this.beats}${nonce}-`;
  }
  beat(nonce: string, count: number): string {
    return `${this.beatsOf(nonce)}${seqName(count)}`;
  }
  pack(seq: number): string {
    return `${this.packs}${seqName(seq)}`;
  }
  segment(seq: number): string {
    return `${this.index}${seqName(seq)}`;
  }
  checkpoint(seq: number, id: string): string {
    return `${this.checkpoints}${seqName(seq)}-${id}`;
  }
}

function seqName(seq: number): string {
  return seq.toString(16).padStart(8, '0');
}

/**
 * Sequence number in the last segment of the key of a pack, index segment or checkpoint; 0 for anything else.
 */
export function seqOfKey(key: string): number {
  const match = /\/([0-9a-f]{8})(?:-[0-9a-f]{16})?$/.exec(key);
  return match === null ? 0 : Number.parseInt(match[1]!, 16);
}

/** Id in the key of a checkpoint, undefined for any other key. */
export function idOfKey(key: string): string | undefined {
  return /^vms\/[^/]+\/checkpoints\/[0-9a-f]{8}-([0-9a-f]{16})$/.exec(key)?.[1];
}

/** Binds packs and index segments to repository and chain: 16 bytes in their headers. */
export function ownerTag(repositoryId: string, chain: string): Uint8Array {
  return new Uint8Array(
    createHash('sha256').update(`${repositoryId}/${chain}`, 'utf8').digest().subarray(0, 16),
  );
}
