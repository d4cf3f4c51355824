/**
 * Reads a QEMU migration stream (a file of `migrate exec:cat`, or ours). It shares nothing with the writer
 * but the numbers in `format.ts`, so that one proves the other.
 *
 * The input is hostile: every length is checked before it is used, memory is bounded by one buffer, the
 * device part and the block list. Refused: compressed, XBZRLE and RDMA records, mapped-ram, postcopy, and
 * sections other than "ram" that are sent while the VM runs (block, dirty-bitmap, vfio).
 */

import type { CheckpointError } from '../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { ByteReader } from './byte-reader.js';
import {
  FOOTER_BYTES,
  RAM_FLAG,
  RAM_FLAGS_MASK,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
  SECTION_HEADER_BYTES,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './format.js';
import { type DeviceSection, splitSections } from './sections.js';
import { sectionLengths } from './vm-description.js';

export interface RamBlock {
  readonly id: string;
  readonly sizeBytes: number;
}

export interface StreamHandlers {
  /** Once, before the first page. */
  readonly onBlocks?: (blocks: readonly RamBlock[]) => void;
  /**
   * Called for one page after the other, in stream order; a later record of the same page replaces an earlier
   * one. `bytes` is null for a zero page, otherwise a view that is valid until this returns.
   */
  readonly onPage?: (block: RamBlock, pageOfBlock: number, bytes: Buffer | null) => void;
}

export interface MigrationStream {
  readonly machineType: string;
  readonly blocks: readonly RamBlock[];
  readonly sections: readonly DeviceSection[];
  /** Header, body and footer of all device sections, as they stood: what `deviceSections` gives of a blob. */
  readonly deviceBytes: Buffer;
  readonly pageRecords: number;
  readonly zeroRecords: number;
  readonly hasDescription: boolean;
}

export interface StreamLimits {
  /** Device sections and vmdesc together. */
  readonly maxDeviceBytes: number;
}

const DEFAULT_LIMITS: StreamLimits = { maxDeviceBytes: 128 * 1024 * 1024 };
const MAX_BLOCKS = 4096;
/** 64 TiB: more than any x86 machine of QEMU. */
const MAX_RAM_BYTES = 2 ** 46;
const MAX_RECORD_BYTES = 8 + 1 + 255 + PAGE_SIZE_BYTES;
/** Sent by QEMU >= 10.0 before the device state; no payload. */
const COMMAND_SWITCHOVER_START = 11;

/** @throws STREAM_MALFORMED */
export async function readMigrationStream(
  input: AsyncIterable<Uint8Array>,
  handlers: StreamHandlers = {},
  limits: StreamLimits = DEFAULT_LIMITS,
): Promise<MigrationStream> {
  const reader = new ByteReader(input);
  const machineType = await readHeader(reader);
  const ram = new RamSections(reader, handlers);
  // The EOF byte is left for the device part, which ends with it.
  while ((await reader.fill(1)) && (await ram.next()));
  return { machineType, ...ram.result(), ...(await readDevicePart(reader, limits)) };
}

async function readHeader(reader: ByteReader): Promise<string> {
  await reader.need(8);
  if (reader.u32() !== STREAM_MAGIC) throw reader.malformed('it does not start with "QEVM"');
  const version = reader.u32();
  if (version !== STREAM_VERSION) throw reader.malformed(`version ${version} instead of ${STREAM_VERSION}`);
  await reader.need(5);
  if (reader.u8() !== SECTION.CONFIGURATION) throw reader.malformed('it has no configuration');
  const length = reader.u32();
  if (length === 0 || length > 255) throw reader.malformed('the machine type has no sensible length');
  await reader.need(length + 1);
  const machineType = reader.view(length).toString('latin1');
  if (!/^[\x21-\x7e]+$/.test(machineType)) throw reader.malformed('the machine type is not printable');
  return machineType;
}

type RamResult = Pick<MigrationStream, 'blocks' | 'pageRecords' | 'zeroRecords'>;

/** The part of the stream before the first device section. */
class RamSections {
  readonly #reader: ByteReader;
  readonly #handlers: StreamHandlers;
  readonly #blocks = new Map<string, RamBlock>();
  #sectionId: number | undefined;
  #lastBlock: RamBlock | undefined;
  #pageRecords = 0;
  #zeroRecords = 0;

  constructor(reader: ByteReader, handlers: StreamHandlers) {
    this.#reader = reader;
    this.#handlers = handlers;
  }

  result(): RamResult {
    if (this.#sectionId === undefined) throw this.#reader.malformed('it has no memory');
    return {
      blocks: [...this.#blocks.values()],
      pageRecords: this.#pageRecords,
      zeroRecords: this.#zeroRecords,
    };
  }

  /**
   * Reads one section.
   * @returns false, with its type byte unread, when a device section or the end is next
   */
  async next(): Promise<boolean> {
    const reader = this.#reader;
    const type = reader.peek();
    if (type === SECTION.FULL || type === SECTION.EOF) return false;
    reader.view(1);
    if (type === SECTION.START) await this.#readStart();
    else if (type === SECTION.PART || type === SECTION.END) await this.#readRecords();
    else if (type === SECTION.SUBSECTION) await this.#readConfigurationSubsection();
    else if (type === SECTION.COMMAND) await this.#readCommand();
    else throw reader.malformed(`a section of type ${type}`);
    return true;
  }

  async #readCommand(): Promise<void> {
    await this.#reader.need(4);
    const command = this.#reader.u16();
    const length = this.#reader.u16();
    if (command !== COMMAND_SWITCHOVER_START || length !== 0) {
      throw this.#reader.malformed(`command ${command}; only a plain stream can be read, without postcopy`);
    }
  }

  /**
   * `configuration/capabilities` must not list anything that changes the stream; a page-size subsection never
   * occurs on x86.
   */
  async #readConfigurationSubsection(): Promise<void> {
    const reader = this.#reader;
    if (this.#sectionId !== undefined) throw reader.malformed('a configuration behind the memory');
    await reader.fill(1024);
    const name = reader.name();
    reader.u32();
    if (name === 'configuration/uuid') {
      reader.view(16);
      return;
    }
    throw reader.malformed(`the configuration asks for "${name}", which is not supported`);
  }

  async #readStart(): Promise<void> {
    const reader = this.#reader;
    await reader.fill(SECTION_HEADER_BYTES - 1 + 255);
    const id = reader.u32();
    const name = reader.name();
    reader.u32();
    const version = reader.u32();
    if (name !== RAM_SECTION_NAME)
      throw reader.malformed(`the section "${name}" is sent live, which is not supported`);
    if (version !== RAM_SECTION_VERSION) throw reader.malformed(`memory of version ${version}`);
    if (this.#sectionId !== undefined) throw reader.malformed('a second list of memory blocks');
    this.#sectionId = id;
    await reader.need(8);
    const total = this.#word();
    if (total.flags !== RAM_FLAG.MEM_SIZE) throw reader.malformed('no list of memory blocks');
    if (total.offset > MAX_RAM_BYTES) throw reader.malformed('more memory than any machine has');
    await this.#readBlocks(total.offset);
    this.#handlers.onBlocks?.([...this.#blocks.values()]);
    await reader.need(8);
    const end = this.#word();
    if (end.flags !== RAM_FLAG.EOS)
      throw reader.malformed('something unknown behind the list of memory blocks');
    await this.#readFooter();
  }

  async #readBlocks(totalBytes: number): Promise<void> {
    const reader = this.#reader;
    let left = totalBytes;
    while (left > 0) {
      await reader.fill(1 + 255 + 8);
      const id = reader.name();
      const sizeBytes = reader.u64();
      if (sizeBytes === 0 || sizeBytes % PAGE_SIZE_BYTES !== 0 || sizeBytes > left) {
        throw reader.malformed(`the memory block "${id}" has no sensible size`);
      }
      if (this.#blocks.has(id)) throw reader.malformed(`the memory block "${id}" is listed twice`);
      if (this.#blocks.size === MAX_BLOCKS) throw reader.malformed('too many memory blocks');
      this.#blocks.set(id, { id, sizeBytes });
      left -= sizeBytes;
    }
  }

  async #readRecords(): Promise<void> {
    const reader = this.#reader;
    await reader.need(4);
    if (reader.u32() !== this.#sectionId)
      throw reader.malformed('a part of a section that was never started');
    for (;;) {
      if (reader.available < MAX_RECORD_BYTES) await reader.fill(MAX_RECORD_BYTES);
      const { offset, flags } = this.#word();
      if (flags === RAM_FLAG.EOS) break;
      const kind = flags & ~RAM_FLAG.CONTINUE;
      if (kind !== RAM_FLAG.PAGE && kind !== RAM_FLAG.ZERO) throw this.#unsupported(kind);
      this.#page(offset, (flags & RAM_FLAG.CONTINUE) !== 0, kind === RAM_FLAG.ZERO);
    }
    await this.#readFooter();
  }

  #page(offset: number, sameBlock: boolean, zero: boolean): void {
    const reader = this.#reader;
    if (!sameBlock) this.#lastBlock = this.#blocks.get(reader.name());
    const block = this.#lastBlock;
    if (block === undefined) throw reader.malformed('a page of no known memory block');
    if (offset >= block.sizeBytes) throw reader.malformed(`a page past the end of "${block.id}"`);
    if (zero) {
      if (reader.u8() !== 0) throw reader.malformed('a page filled with a byte that is not zero');
      this.#zeroRecords++;
      this.#handlers.onPage?.(block, offset / PAGE_SIZE_BYTES, null);
    } else {
      this.#pageRecords++;
      // Taken whether or not somebody wants it: an optional call would skip its arguments too.
      const bytes = reader.view(PAGE_SIZE_BYTES);
      this.#handlers.onPage?.(block, offset / PAGE_SIZE_BYTES, bytes);
    }
  }

  #unsupported(kind: number): CheckpointError {
    const names: Readonly<Record<number, string>> = {
      [RAM_FLAG.XBZRLE]: 'an XBZRLE record; switch the capability xbzrle off',
      [RAM_FLAG.COMPRESS_PAGE]: 'a compressed page; switch the capability compress off',
      [RAM_FLAG.MULTIFD_FLUSH]: 'a multifd mark; switch the capability multifd off',
      [RAM_FLAG.HOOK]: 'an RDMA record',
    };
    return this.#reader.malformed(names[kind] ?? `a record of unknown kind 0x${kind.toString(16)}`);
  }

  #word(): { readonly offset: number; readonly flags: number } {
    const high = this.#reader.u32();
    const low = this.#reader.u32();
    if (high >= 2 ** 21) throw this.#reader.malformed('an offset is absurd');
    return { offset: high * 2 ** 32 + (low - (low & RAM_FLAGS_MASK)), flags: low & RAM_FLAGS_MASK };
  }

  async #readFooter(): Promise<void> {
    await this.#reader.need(FOOTER_BYTES);
    if (this.#reader.u8() !== SECTION.FOOTER || this.#reader.u32() !== this.#sectionId) {
      throw this.#reader.malformed('a section of memory has no footer');
    }
  }
}

async function readDevicePart(
  reader: ByteReader,
  limits: StreamLimits,
): Promise<Pick<MigrationStream, 'sections' | 'deviceBytes' | 'hasDescription'>> {
  const part = await reader.rest(limits.maxDeviceBytes);
  const description = findDescription(part);
  const lengths = description === undefined ? undefined : sectionLengths(description);
  const { sections, length, sawEof } = splitSections(part, lengths);
  if (!sawEof) throw reader.malformed('it ends without the EOF byte: the sender was cut off');
  return { sections, deviceBytes: part.subarray(0, length - 1), hasDescription: description !== undefined };
}

/**
 * The JSON of the vmdesc, which is the last thing in a stream: `00 06 | u32 length | JSON` reaches exactly to
 * the end.
 */
function findDescription(part: Buffer): string | undefined {
  const mark = Buffer.from([SECTION.EOF, SECTION.VMDESC]);
  for (let at = part.lastIndexOf(mark); at >= 0; at = at === 0 ? -1 : part.lastIndexOf(mark, at - 1)) {
    if (
      at + 6 <= part.length &&
      at + 6 + part.readUInt32BE(at + 2) === part.length &&
      part[at + 6] === 0x7b
    ) {
      const json = part.toString('utf8', at + 6).replace(/\0+$/, '');
      return json === '{}' ? undefined : json;
    }
  }
  return undefined;
}
