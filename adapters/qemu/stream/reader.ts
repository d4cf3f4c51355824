/**
 * Reads a QEMU migration stream (a file of `migrate exec:cat`, or ours). It shares nothing with the writer
 * but the numbers in `format.ts`, so that one proves the other.
 *
 * The input is hostile: every length is checked before it is used, memory is bounded by one buffer, the
 * device part and the block list. Refused: compressed, XBZRLE and RDMA records, postcopy, and sections other
 * than "ram" that are sent while the VM runs (block, dirty-bitmap, vfio).
 *
 * In a mapped-ram file the pages of a block stand in the list of blocks, before the next block is named.
 * Whoever has to know the list first reads such a file twice: `readMigrationStream`, then `readMappedPages`.
 */

import type { ByteSource } from '../../../src/hypervisor/byte-source.js';
import { MAX_DEVICE_STATE_BYTES } from '../../../src/hypervisor/device-state.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { ByteReader } from './byte-reader.js';
import { namedCommand, namedRecord, namedSection, namedStart } from './features.js';
import {
  FOOTER_BYTES,
  RAM_FLAG,
  RAM_FLAGS_MASK,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
  SECTION_HEADER_BYTES,
  STREAM_HEADER_BYTES,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './format.js';
import { readMappedBlock } from './mapped-ram.js';
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
  /** The same as a blob: `deviceBytes` is a view of it. */
  readonly deviceBlob: Buffer;
  readonly pageRecords: number;
  readonly zeroRecords: number;
  readonly hasDescription: boolean;
  /** Its pages lie at fixed places and were left out: `readMappedPages`. */
  readonly isMapped: boolean;
}

export interface StreamOptions {
  /** Device sections and vmdesc together; default: what a checkpoint can hold. */
  readonly maxDeviceBytes?: number;
  /** Take a mapped-ram file as well, see `MigrationStream.isMapped`; default: refuse it. */
  readonly takesMapped?: boolean;
  /** Place of the stream in its file, from which places in a mapped-ram file count; default 0. */
  readonly startByte?: number;
}

const MAX_BLOCKS = 4096;
/** 64 TiB: more than any x86 machine of QEMU. */
const MAX_RAM_BYTES = 2 ** 46;
const MAX_RECORD_BYTES = 8 + 1 + 255 + PAGE_SIZE_BYTES;
/** QEMU 10.0 has some twenty. */
const MAX_CAPABILITIES = 64;
const MAPPED_RAM = 'mapped-ram';
/** How far from the end a vmdesc is looked for: twice what it may be. */
const MAX_DESCRIPTION_BYTES = 32 << 20;
/** Sent by QEMU >= 10.0 before the device state; no payload. */
const COMMAND_SWITCHOVER_START = 11;

/** @throws STREAM_MALFORMED, also for more device state than `maxDeviceBytes` */
export async function readMigrationStream(
  input: ByteSource,
  handlers: StreamHandlers = {},
  options: StreamOptions = {},
): Promise<MigrationStream> {
  const reader = new ByteReader(input);
  const machineType = await readHeader(reader);
  const ram = new RamSections(reader, handlers, options);
  // The EOF byte is left for the device part, which ends with it.
  while ((await reader.fill(1)) && (await ram.next()));
  const { maxDeviceBytes = MAX_DEVICE_STATE_BYTES - STREAM_HEADER_BYTES } = options;
  return { machineType, ...ram.result(), ...(await readDevicePart(reader, maxDeviceBytes)) };
}

/**
 * The pages of a mapped-ram file, block by block, and of a block in order. A page that is not there is zero.
 * @throws STREAM_MALFORMED
 */
export async function readMappedPages(
  input: ByteSource,
  onPage: (block: RamBlock, pageOfBlock: number, bytes: Buffer) => void,
  startByte = 0,
): Promise<void> {
  const reader = new ByteReader(input);
  await readHeader(reader);
  const ram = new RamSections(reader, {}, { takesMapped: true, startByte }, onPage);
  while ((await reader.fill(1)) && (await ram.next())) if (ram.isStarted) return;
}

async function readHeader(reader: ByteReader): Promise<string> {
  await reader.need(8);
  const magic = reader.u32();
  if (magic !== STREAM_MAGIC) throw reader.malformed(namedStart(magic));
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

type RamResult = Pick<MigrationStream, 'blocks' | 'pageRecords' | 'zeroRecords' | 'isMapped'>;

/** The part of the stream before the first device section. */
class RamSections {
  readonly #reader: ByteReader;
  readonly #handlers: StreamHandlers;
  readonly #options: StreamOptions;
  readonly #onMappedPage: ((block: RamBlock, page: number, bytes: Buffer) => void) | undefined;
  #isMapped = false;
  readonly #blocks = new Map<string, RamBlock>();
  #sectionId: number | undefined;
  #lastBlock: RamBlock | undefined;
  #pageRecords = 0;
  #zeroRecords = 0;

  constructor(
    reader: ByteReader,
    handlers: StreamHandlers,
    options: StreamOptions,
    onMappedPage?: (block: RamBlock, page: number, bytes: Buffer) => void,
  ) {
    this.#reader = reader;
    this.#handlers = handlers;
    this.#options = options;
    this.#onMappedPage = onMappedPage;
  }

  /** The list of blocks has been read. */
  get isStarted(): boolean {
    return this.#sectionId !== undefined;
  }

  result(): RamResult {
    if (this.#sectionId === undefined) throw this.#reader.malformed('it has no memory');
    return {
      blocks: [...this.#blocks.values()],
      pageRecords: this.#pageRecords,
      zeroRecords: this.#zeroRecords,
      isMapped: this.#isMapped,
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
      throw this.#reader.malformed(namedCommand(command));
    }
  }

  /** A page-size subsection never occurs on x86. */
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
    if (name !== 'configuration/capabilities')
      throw reader.malformed(`the configuration asks for "${name}", which is not supported`);
    const count = reader.u32();
    if (count > MAX_CAPABILITIES) throw reader.malformed('too many capabilities');
    for (let i = 0; i < count; i++) this.#capability(reader.name());
  }

  /** Those are listed that change the stream. */
  #capability(name: string): void {
    if (name !== MAPPED_RAM) {
      throw this.#reader.malformed(`the capability ${name} was on; switch it off`);
    }
    if (this.#options.takesMapped !== true) throw this.#reader.malformed('a mapped-ram file');
    this.#isMapped = true;
  }

  async #readStart(): Promise<void> {
    const reader = this.#reader;
    await reader.fill(SECTION_HEADER_BYTES - 1 + 255);
    const id = reader.u32();
    const name = reader.name();
    reader.u32();
    const version = reader.u32();
    if (name !== RAM_SECTION_NAME) throw reader.malformed(namedSection(name));
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
    let end = this.#word();
    if (this.#isMapped && end.flags === RAM_FLAG.MULTIFD_FLUSH) {
      await reader.need(8);
      end = this.#word();
    }
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
      const block = { id, sizeBytes };
      this.#blocks.set(id, block);
      left -= sizeBytes;
      if (this.#isMapped) await this.#readMapped(block);
    }
  }

  #readMapped(block: RamBlock): Promise<void> {
    const { startByte = 0 } = this.#options;
    const onPage = this.#onMappedPage;
    return readMappedBlock(
      this.#reader,
      block.sizeBytes,
      startByte,
      onPage === undefined ? undefined : (page, bytes) => onPage(block, page, bytes),
    );
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
      // Pages that multifd has put at their places need no order.
      if (this.#isMapped && kind === RAM_FLAG.MULTIFD_FLUSH) continue;
      if (this.#isMapped || (kind !== RAM_FLAG.PAGE && kind !== RAM_FLAG.ZERO))
        throw reader.malformed(namedRecord(kind));
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
  maxDeviceBytes: number,
): Promise<Pick<MigrationStream, 'sections' | 'deviceBytes' | 'deviceBlob' | 'hasDescription'>> {
  const header = Buffer.alloc(STREAM_HEADER_BYTES);
  header.writeUInt32BE(STREAM_MAGIC, 0);
  header.writeUInt32BE(STREAM_VERSION, 4);
  // One buffer for all: the state may be large.
  const blob = await reader.rest(maxDeviceBytes, header);
  const part = blob.subarray(STREAM_HEADER_BYTES);
  const description = findDescription(part);
  const lengths = description === undefined ? undefined : sectionLengths(description);
  const { sections, length, sawEof } = splitSections(part, lengths);
  if (!sawEof) throw reader.malformed('it ends without the EOF byte: the sender was cut off');
  return {
    sections,
    deviceBytes: part.subarray(0, length - 1),
    deviceBlob: blob.subarray(0, STREAM_HEADER_BYTES + length),
    hasDescription: description !== undefined,
  };
}

/**
 * The JSON of the vmdesc, which is the last thing in a stream: `00 06 | u32 length | JSON` reaches exactly to
 * the end.
 */
function findDescription(part: Buffer): string | undefined {
  const mark = Buffer.from([SECTION.EOF, SECTION.VMDESC]);
  const first = Math.max(0, part.length - MAX_DESCRIPTION_BYTES);
  for (let at = part.lastIndexOf(mark); at >= first; at = at === 0 ? -1 : part.lastIndexOf(mark, at - 1)) {
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
