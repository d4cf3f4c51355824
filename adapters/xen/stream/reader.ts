/**
 * Reads an `xl save` file, record by record, in bounded memory. Shares nothing with the writer but the
 * numbers in `format.ts`: each checks the other.
 *
 * Older layers are refused (xl save files of Xen before 4.6), as are big-endian ones and records that this
 * version does not know, unless their type says that they may be skipped.
 */

import { CheckpointError } from '../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import {
  FIRST_EMPTY_TYPE,
  GUEST_TYPE,
  LIBXC_ID,
  LIBXC_MARKER_BYTES,
  LIBXC_RECORD,
  LIBXC_VERSION,
  LIBXL_IDENT,
  LIBXL_RECORD,
  LIBXL_VERSION,
  MAX_RECORD_PAGES,
  OPTIONAL_RECORD,
  padded,
  XL_BYTE_ORDER,
  XL_HEADER_BYTES,
  XL_MAGIC,
  XL_MANDATORY_FLAGS,
  type GuestType,
} from './format.js';
import type { StateRecord } from './records.js';

export interface SaveHead {
  /** libxl's JSON. */
  readonly config: string;
  readonly guestType: GuestType;
  readonly xenMajor: number;
  readonly xenMinor: number;
}

export type SaveItem =
  | { readonly kind: 'head'; readonly head: SaveHead }
  /** `before`: ahead of the pages. */
  | { readonly kind: 'state'; readonly record: StateRecord; readonly before: boolean }
  /** A frame of the guest. Null: listed, but without contents. The bytes are valid until the next item. */
  | {
      readonly kind: 'page';
      readonly frame: number;
      readonly type: number;
      readonly bytes: Uint8Array | null;
    }
  | { readonly kind: 'emulator'; readonly record: StateRecord }
  /** Sent by `xl remus`: what came since the last record of this kind makes up a state of the guest. */
  | { readonly kind: 'checkpoint' };

/** A configuration or a state record larger than this is none. */
const MAX_BODY_BYTES = 64 << 20;
/** A body that is longer is given memory as it comes. */
const TRUSTED_BYTES = 64 << 10;
/** Guest frames have 40 bits: physical addresses of x86 have 52. */
const MAX_FRAME_HIGH = 2 ** 8;
const KNOWN: ReadonlySet<number> = new Set(Object.values(LIBXC_RECORD));

/**
 * @param isRemus the stream of `xl remus`, a checkpoint after the other; otherwise a file with one is refused
 * @throws STREAM_MALFORMED naming the byte, and what `source` throws
 */
export async function* readSaveFile(
  source: AsyncIterable<Uint8Array>,
  isRemus = false,
): AsyncGenerator<SaveItem> {
  const input = new Input(source);
  const config = await readXlHeader(input);
  await readLibxlHeader(input);
  for (;;) {
    const { type, body } = await readRecord(input);
    if (type === LIBXL_RECORD.end) return;
    if (type === LIBXL_RECORD.libxcContext) yield* readLibxc(input, config, isRemus);
    else yield* emulatorItem(input, { type, body });
  }
}

/** What the layer below is interrupted for after each of its checkpoints. */
async function* readCheckpointRecords(input: Input): AsyncGenerator<SaveItem> {
  for (;;) {
    const record = await readRecord(input);
    if (record.type === LIBXL_RECORD.checkpointEnd) break;
    yield* emulatorItem(input, record);
  }
  yield { kind: 'checkpoint' };
}

function* emulatorItem(input: Input, record: StateRecord): Generator<SaveItem> {
  const { type } = record;
  if (type === LIBXL_RECORD.emulatorContext || type === LIBXL_RECORD.emulatorXenstore)
    yield { kind: 'emulator', record };
  else if (type < OPTIONAL_RECORD) throw input.malformed(`libxl record ${type}`);
}

async function readXlHeader(input: Input): Promise<string> {
  const header = await input.take(XL_HEADER_BYTES);
  if (!header.subarray(0, XL_MAGIC.length).equals(XL_MAGIC))
    throw input.malformed('this is no file of xl save');
  if (header.readUInt32LE(32) !== XL_BYTE_ORDER) throw input.malformed('another byte order');
  if (header.readUInt32LE(36) !== XL_MANDATORY_FLAGS) throw input.malformed('flags of another version of xl');
  const optionalBytes = header.readUInt32LE(44);
  const optional = await input.take(optionalBytes);
  const configBytes = optionalBytes >= 4 ? optional.readUInt32LE(0) : 0;
  if (configBytes === 0 || configBytes + 4 > optionalBytes) throw input.malformed('no configuration');
  return optional.toString('utf8', 4, 4 + configBytes).replace(/\0+$/, '');
}

async function readLibxlHeader(input: Input): Promise<void> {
  const header = await input.take(16);
  const isRight =
    header.subarray(0, 8).equals(LIBXL_IDENT) &&
    header.readUInt32BE(8) === LIBXL_VERSION &&
    (header.readUInt32BE(12) & 1) === 0;
  if (!isRight) throw input.malformed('the libxl layer is of another version');
}

async function* readLibxc(input: Input, config: string, isRemus: boolean): AsyncGenerator<SaveItem> {
  const header = await input.take(40);
  const hasMarker = header.subarray(0, LIBXC_MARKER_BYTES).every((byte) => byte === 0xff);
  if (!hasMarker || header.readUInt32BE(8) !== LIBXC_ID)
    throw input.malformed('the libxc layer is of another kind');
  if (header.readUInt32BE(12) !== LIBXC_VERSION)
    throw input.malformed(`libxc version ${header.readUInt32BE(12)}`);
  const guestType = header.readUInt32LE(24);
  if (guestType !== GUEST_TYPE.pv && guestType !== GUEST_TYPE.hvm)
    throw input.malformed(`guest type ${guestType}`);
  if (header.readUInt16LE(28) !== 12) throw input.malformed('pages of another size');
  yield {
    kind: 'head',
    head: { config, guestType, xenMajor: header.readUInt32LE(32), xenMinor: header.readUInt32LE(36) },
  };
  let before = true;
  for (;;) {
    const { type, length } = await readRecordHead(input);
    if (type === LIBXC_RECORD.end) return;
    if (type === LIBXC_RECORD.pageData) {
      before = false;
      yield* readPages(input, length);
      continue;
    }
    const body = await readBody(input, length);
    if (type === LIBXC_RECORD.checkpoint) {
      if (!isRemus) throw input.malformed('a stream of several checkpoints (xl remus)');
      yield* readCheckpointRecords(input);
      continue;
    }
    if (!KNOWN.has(type)) {
      if (type < OPTIONAL_RECORD) throw input.malformed(`record ${type}`);
      continue;
    }
    if (type === LIBXC_RECORD.staticDataEnd) continue;
    yield { kind: 'state', record: { type, body }, before };
  }
}

async function* readPages(input: Input, length: number): AsyncGenerator<SaveItem> {
  const count = (await input.take(8)).readUInt32LE(0);
  if (count === 0 || count > MAX_RECORD_PAGES) throw input.malformed(`${count} pages in a record`);
  const entries = await input.take(8 * count);
  let used = 8 + 8 * count;
  for (let i = 0; i < count; i++) {
    const high = entries.readUInt32LE(8 * i + 4);
    const frameHigh = high & 0x0fff_ffff;
    if (frameHigh >= MAX_FRAME_HIGH) throw input.malformed('a frame that no machine has');
    const frame = entries.readUInt32LE(8 * i) + frameHigh * 2 ** 32;
    const type = high >>> 28;
    const hasContents = type < FIRST_EMPTY_TYPE;
    if (hasContents) used += PAGE_SIZE_BYTES;
    yield { kind: 'page', frame, type, bytes: hasContents ? await input.take(PAGE_SIZE_BYTES) : null };
  }
  if (used !== length) throw input.malformed('the length of a page record is wrong');
}

async function readRecord(input: Input): Promise<StateRecord> {
  const { type, length } = await readRecordHead(input);
  return { type, body: await readBody(input, length) };
}

async function readRecordHead(input: Input): Promise<{ readonly type: number; readonly length: number }> {
  const head = await input.take(8);
  return { type: head.readUInt32LE(0), length: head.readUInt32LE(4) };
}

async function readBody(input: Input, length: number): Promise<Buffer> {
  return (await input.take(padded(length))).subarray(0, length);
}

/** Sequential reads; each result is memory of its own. */
class Input {
  readonly #source: AsyncIterator<Uint8Array>;
  #rest: Buffer = Buffer.alloc(0);
  #position = 0;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  async take(length: number): Promise<Buffer> {
    if (length > MAX_BODY_BYTES) throw this.malformed(`a length of ${length} bytes`);
    let bytes = Buffer.allocUnsafe(Math.min(length, TRUSTED_BYTES));
    for (let filled = 0; filled < length;) {
      if (filled === bytes.length)
        bytes = Buffer.concat([bytes, Buffer.allocUnsafe(Math.min(length - filled, filled))]);
      if (this.#rest.length === 0) {
        const next = await this.#source.next();
        if (next.done === true) throw this.malformed('it ends too early');
        this.#rest = Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength);
      }
      const part = Math.min(bytes.length - filled, this.#rest.length);
      this.#rest.copy(bytes, filled, 0, part);
      this.#rest = this.#rest.subarray(part);
      filled += part;
    }
    this.#position += length;
    return bytes;
  }

  malformed(what: string): CheckpointError {
    return new CheckpointError(
      'STREAM_MALFORMED',
      `the save file is not usable at byte ${this.#position}: ${what}`,
      { hint: 'is it what xl save wrote or xl remus sends, and whole? if so, have xl make it once more' },
    );
  }
}
