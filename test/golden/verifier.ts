/**
 * A second reader of repositories, written from docs/format.md alone. Shares no code with src/ except the call into
 * libzstd. Slow and plain; throws at the first thing that is not as the document says.
 */

import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { decompress, decompressWithPrefix } from '../../src/ffi/zstd.js';
import { xxh64 } from './xxh64.js';

const PAGE = 4096;
const ZEROES = Buffer.alloc(PAGE);

export interface VerifiedCheckpoint {
  readonly chain: string;
  readonly id: string;
  readonly parentId: string | null;
  /** Region id to the SHA-256 of its bytes, hex. */
  readonly regions: Readonly<Record<string, string>>;
  readonly deviceStateSha256: string;
}

interface ManifestJson {
  readonly format: string;
  readonly version: number;
  readonly requires: readonly string[];
  readonly id: string;
  readonly seq: number;
  readonly chain: string;
  readonly parentId: string | null;
  readonly layout: readonly { readonly id: string; readonly sizeBytes: number }[];
  readonly packs: readonly PackJson[];
  readonly segments: readonly SegmentJson[];
  readonly deviceState: {
    readonly pack: number;
    readonly frame: number;
    readonly sizeBytes: number;
    readonly sha256: string;
  } | null;
  readonly disks: readonly { readonly mode: string }[];
  readonly frozen?: unknown;
  readonly maxDepth: number;
}
interface PackJson {
  readonly seq: number;
  readonly sizeBytes: number;
  readonly frameCount: number;
  readonly directorySha256: string;
}
interface SegmentJson {
  readonly seq: number;
  readonly level: number;
  readonly entryCount: number;
  readonly sizeBytes: number;
  readonly directorySha256: string;
}
interface PageRecord {
  readonly page: number;
  readonly codec: number;
  readonly base: bigint;
  readonly control: Buffer;
  readonly data: Buffer;
}

export interface VerifierOptions {
  /** Default true. False leaves `regions` empty: every page is read, but not hashed once more for each checkpoint that has it. */
  readonly withRegions?: boolean;
}

/** Reads every checkpoint of the repository in `folder` back, in the order of chains and sequence numbers. */
export function verifyRepository(
  folder: string,
  { withRegions = true }: VerifierOptions = {},
): readonly VerifiedCheckpoint[] {
  const config = sealed(folder, 'config') as {
    format: string;
    version: number;
    requires: unknown[];
    id: string;
  };
  must(
    config.format === 'cairn-repository' && config.version === 1 && config.requires.length === 0,
    'config',
  );
  return (
    namesIn(join(folder, 'vms'))
      // A writer that was cut off early leaves folders, and its lock, of a chain that is none.
      .filter(
        (chain) => existsSync(join(folder, 'vms', chain, 'vm')) || checkpointsOf(folder, chain).length > 0,
      )
      .flatMap((chain) => new Chain(folder, config.id, chain, withRegions).verify())
  );
}

function checkpointsOf(folder: string, chain: string): readonly string[] {
  return namesIn(join(folder, 'vms', chain, 'checkpoints'));
}

/** Sorted, without unfinished files. None where there is no such folder: an object makes its folder. */
function namesIn(folder: string): readonly string[] {
  return existsSync(folder)
    ? readdirSync(folder)
        .filter((name) => !name.startsWith('~'))
        .sort()
    : [];
}

class Chain {
  readonly #pages = new Map<bigint, Buffer>();
  readonly #depths = new Map<bigint, number>();
  readonly #blobs = new Map<string, Buffer>();
  readonly #packs = new Set<number>();
  readonly #prefix: string;
  readonly #owner: Buffer;

  constructor(
    private readonly folder: string,
    repositoryId: string,
    private readonly chain: string,
    private readonly withRegions: boolean,
  ) {
    this.#prefix = `vms/${chain}`;
    this.#owner = sha256(Buffer.from(`${repositoryId}/${chain}`)).subarray(0, 16);
  }

  verify(): VerifiedCheckpoint[] {
    const vm = sealed(this.folder, `${this.#prefix}/vm`) as { name: string };
    must(vm.name.length > 0, 'vm');
    return checkpointsOf(this.folder, this.chain).map((name) => this.#checkpoint(name));
  }

  #checkpoint(name: string): VerifiedCheckpoint {
    const manifest = sealed(this.folder, `${this.#prefix}/checkpoints/${name}`) as ManifestJson;
    must(manifest.format === 'cairn-repository' && manifest.version === 1, 'manifest head');
    const features = [
      ...(manifest.frozen === undefined ? [] : ['frozen-guest']),
      ...manifest.disks.map(({ mode }) => `${mode}-snapshot`),
    ];
    must(
      manifest.requires.every((feature) => features.includes(feature)) &&
        (manifest.frozen === undefined || manifest.requires.includes('frozen-guest')),
      'manifest requires',
    );
    must(name === `${hex8(manifest.seq)}-${manifest.id}` && manifest.chain === this.chain, 'manifest name');
    for (const pack of manifest.packs) this.#pack(pack.seq, pack);
    const map = this.#map(manifest);
    const regions: Record<string, string> = {};
    let firstPage = 0;
    let deepest = 0;
    // Some that no manifest lists any more, when checkpoints were forgotten.
    for (const { ref } of map.values()) if (ref !== 0n) this.#packOf(ref);
    for (const { id, sizeBytes } of manifest.layout) {
      const hash = createHash('sha256');
      for (let page = firstPage; page < firstPage + sizeBytes / PAGE; page++) {
        const entry = map.get(page);
        const ref = entry?.ref ?? 0n;
        if (ref !== 0n) must(this.#depths.get(ref) === entry!.depth, `depth of page ${page}`);
        deepest = Math.max(deepest, entry?.depth ?? 0);
        const contents = this.#pageOf(ref);
        if (this.withRegions) hash.update(contents);
        map.delete(page);
      }
      if (this.withRegions) regions[id] = hash.digest('hex');
      firstPage += Math.ceil(sizeBytes / PAGE / 64) * 64;
    }
    for (const { ref } of map.values()) must(ref === 0n, 'record for a page outside all regions');
    must(deepest === manifest.maxDepth, 'maxDepth');
    const state = manifest.deviceState;
    if (state !== null) this.#pack(state.pack);
    const blob = state === null ? Buffer.alloc(0) : this.#blobs.get(`${state.pack}/${state.frame}`)!;
    if (state !== null)
      must(blob.length === state.sizeBytes && sha256(blob).toString('hex') === state.sha256, 'device state');
    return {
      chain: this.chain,
      id: manifest.id,
      parentId: manifest.parentId,
      regions,
      deviceStateSha256: sha256(blob).toString('hex'),
    };
  }

  #packOf(ref: bigint): void {
    this.#pack(Number(ref >> 29n));
  }

  #pageOf(ref: bigint): Buffer {
    if (ref === 0n) return ZEROES;
    this.#packOf(ref);
    const page = this.#pages.get(ref);
    must(page !== undefined, `record ${ref}`);
    return page!;
  }

  #map(manifest: ManifestJson): Map<number, { ref: bigint; depth: number }> {
    const map = new Map<number, { ref: bigint; depth: number }>();
    must(manifest.segments.length <= 57, 'number of segments');
    must(manifest.segments.filter(({ level }) => level === 255).length === 1, 'one bottom');
    must(manifest.segments.at(-1)!.level === 255, 'bottom is the oldest');
    for (const segment of [...manifest.segments].reverse()) {
      const bytes = readFileSync(join(this.folder, this.#prefix, 'index', hex8(segment.seq)));
      must(bytes.length === segment.sizeBytes, 'segment');
      must(bytes.toString('latin1', 0, 8) === 'CAIRNIDX' && bytes.readUInt16LE(8) === 1, 'segment magic');
      must(bytes[10] === segment.level && bytes.readUInt32LE(12) === segment.seq, 'segment level and seq');
      must(bytes.subarray(16, 32).equals(this.#owner), 'segment owner');
      const count = bytes.readUInt32LE(32);
      must(count === segment.entryCount && bytes[11] === 0, 'segment counts');
      must(
        bytes.subarray(36, 48).every((byte) => byte === 0),
        'segment reserved',
      );
      const sliceCount = Math.ceil(count / 8192);
      const checksum = sha256(bytes.subarray(0, 48), bytes.subarray(80, 80 + sliceCount * 24));
      must(
        checksum.equals(bytes.subarray(48, 80)) && checksum.toString('hex') === segment.directorySha256,
        'segment checksum',
      );
      let at = 80 + sliceCount * 24;
      let last = -1;
      for (let slice = 0; slice < sliceCount; slice++) {
        const listed = bytes.subarray(80 + slice * 24, 104 + slice * 24);
        const stored = bytes.subarray(at, (at += listed.readUInt32LE(4)));
        must(sha256(stored).subarray(0, 16).equals(listed.subarray(8)), 'slice checksum');
        const n = Math.min(8192, count - slice * 8192);
        must(stored.length <= n * 13, 'slice length');
        const body = entropy(stored.length < n * 13 ? 1 : 0, stored, n * 13);
        const pages = deltas(body, 0, n, 4).map(Number);
        const refs = deltas(body, n * 4, n, 8);
        must(pages[0] === listed.readUInt32LE(0), 'first page of a slice');
        for (const [i, page] of pages.entries()) {
          must(page > last, 'segment order');
          last = page;
          map.set(page, { ref: refs[i]!, depth: body[n * 12 + i]! });
        }
      }
      must(at === bytes.length, 'slices fill the segment');
    }
    return map;
  }

  /** @param listed absent for one that no manifest lists any more */
  #pack(seq: number, listed?: PackJson): void {
    if (this.#packs.has(seq)) return;
    this.#packs.add(seq);
    const bytes = readFileSync(join(this.folder, this.#prefix, 'packs', hex8(seq)));
    must(listed === undefined || bytes.length === listed.sizeBytes, 'pack size');
    must(
      bytes.toString('latin1', 0, 8) === 'CAIRNPAK' &&
        bytes.readUInt16LE(8) === 1 &&
        bytes.readUInt16LE(10) === 0,
      'pack magic',
    );
    must(bytes.readUInt32LE(12) === seq && bytes.subarray(16, 32).equals(this.#owner), 'pack seq and owner');
    must(sha256(bytes.subarray(0, 32)).equals(bytes.subarray(32, 64)), 'pack header checksum');
    const trailer = bytes.subarray(bytes.length - 64);
    const frameCount = trailer.readUInt32LE(8);
    const directoryAt = Number(trailer.readBigUInt64LE(16));
    must(
      trailer.toString('latin1', 0, 8) === 'CAIRNEND' &&
        (listed === undefined || frameCount === listed.frameCount),
      'trailer',
    );
    must(trailer.readUInt32LE(12) === seq && trailer.readBigUInt64LE(24) === 0n, 'trailer seq');
    must(directoryAt + frameCount * 24 + 64 === bytes.length, 'directory place');
    const checksum = sha256(bytes.subarray(0, 64), bytes.subarray(directoryAt, bytes.length - 32));
    must(
      checksum.equals(trailer.subarray(32)) &&
        (listed === undefined || checksum.toString('hex') === listed.directorySha256),
      'directory checksum',
    );
    let at = 64;
    for (let frame = 0; frame < frameCount; frame++) {
      const listed = bytes.subarray(directoryAt + frame * 24, directoryAt + (frame + 1) * 24);
      const stored = bytes.subarray(at, at + listed.readUInt32LE(0));
      must(
        listed[4] === stored[4] && listed[5] === 0 && listed.readUInt16LE(6) === stored.readUInt16LE(6),
        'directory entry',
      );
      must(listed.subarray(8).equals(stored.subarray(32, 48)), 'directory checksum of frame');
      this.#frame(seq, frame, stored);
      at += stored.length;
    }
    must(at === directoryAt, 'frames end at the directory');
  }

  #frame(pack: number, frame: number, bytes: Buffer): void {
    must(bytes.toString('latin1', 0, 4) === 'CFRM', 'frame magic');
    if (bytes[4] === 3) {
      this.#patch(pack, frame, bytes);
      return;
    }
    must(bytes.readBigUInt64LE(24) === 0n, 'frame reserved');
    must(sha256(bytes.subarray(0, 32), bytes.subarray(64)).equals(bytes.subarray(32, 64)), 'frame checksum');
    must(bytes.readUInt32LE(8) === bytes.length - 64, 'frame stored length');
    const body = entropy(bytes[5]!, bytes.subarray(64), bytes.readUInt32LE(12));
    if (bytes[4] === 2) {
      must(bytes.readUInt16LE(6) === 0 && bytes.readBigUInt64LE(16) === 0n, 'blob header');
      this.#blobs.set(`${pack}/${frame}`, body);
      return;
    }
    must(bytes[4] === 1, 'frame kind');
    const hashes: Buffer[] = [];
    for (const [i, record] of recordsOf(body, bytes.readUInt16LE(6)).entries()) {
      const ref = (BigInt(pack) << 29n) | (BigInt(frame) << 12n) | BigInt(i);
      must(record.base === 0n || record.base >> 12n < ref >> 12n, 'base before record');
      const page = this.#apply(record);
      this.#pages.set(ref, page);
      const depth = record.codec === 1 || record.base === 0n ? 0 : this.#depths.get(record.base)! + 1;
      must(depth <= 8, 'depth');
      this.#depths.set(ref, depth);
      hashes.push(u64(xxh64(page)));
    }
    must(xxh64(Buffer.concat(hashes)) === bytes.readBigUInt64LE(16), `digest of pack ${pack} frame ${frame}`);
  }

  #patch(pack: number, frame: number, bytes: Buffer): void {
    must(sha256(bytes.subarray(0, 32), bytes.subarray(64)).equals(bytes.subarray(32, 64)), 'patch checksum');
    const count = bytes.readUInt16LE(6);
    const sourceCount = bytes.readUInt16LE(24);
    const columnsEnd = 64 + bytes.readUInt32LE(28);
    const blankCount = bytes.readUInt16LE(26);
    must(bytes[5] === 1 && blankCount < count, 'patch header');
    must(count >= 1 && count <= 256 && sourceCount <= 512, 'patch counts');
    must(bytes.readUInt32LE(8) === bytes.length - 64, 'patch stored length');
    must(
      bytes.readUInt32LE(12) === count * (PAGE + 4) + sourceCount * 8 + blankCount * 2,
      'patch raw length',
    );
    const columnBytes = count * 4 + sourceCount * 8 + blankCount * 2;
    const columns = entropy(1, bytes.subarray(64, columnsEnd), columnBytes);
    const pages = deltas(columns, 0, count, 4);
    const sources = deltas(columns, count * 4, sourceCount, 8);
    const blanksAt = count * 4 + sourceCount * 8;
    const blanks = Array.from(
      { length: blankCount },
      (_, i) => columns[blanksAt + i]! + columns[blanksAt + blankCount + i]! * 256,
    );
    must(
      blanks.every((record, i) => record < count && (i === 0 || record > blanks[i - 1]!)),
      'order of blank records',
    );
    const first = (BigInt(pack) << 29n) | (BigInt(frame) << 12n);
    let depth = 0;
    for (const [i, source] of sources.entries()) {
      must(source < first && (i === 0 || source > sources[i - 1]!), 'order of sources');
      this.#packOf(source);
      depth = Math.max(depth, this.#depths.get(source)! + 1);
    }
    must(depth <= 8, 'depth of a patch');
    const prefix = Buffer.concat(sources.map((source) => this.#pageOf(source)));
    const contents = Buffer.from(decompressWithPrefix(bytes.subarray(columnsEnd), prefix, count * PAGE));
    const hashes: Buffer[] = [];
    for (let i = 0; i < count; i++) {
      must(i === 0 || pages[i]! > pages[i - 1]!, 'order of pages in a patch');
      const page = contents.subarray(i * PAGE, (i + 1) * PAGE);
      must(!blanks.includes(i) || page.every((byte) => byte === 0), 'a blank record is zero');
      this.#pages.set(first | BigInt(i), page);
      this.#depths.set(first | BigInt(i), depth);
      hashes.push(u64(xxh64(page)));
    }
    must(xxh64(Buffer.concat(hashes)) === bytes.readBigUInt64LE(16), 'digest of a patch');
  }

  #apply({ codec, base, control, data }: PageRecord): Buffer {
    if (codec === 1) {
      must(control.length === 0 && data.length === PAGE && base === 0n, 'raw record');
      return Buffer.from(data);
    }
    must(codec === 2 && control.length > 0 && control.length + data.length < PAGE, 'runs record');
    const page = Buffer.from(this.#pageOf(base));
    let controlAt = 0;
    let dataAt = 0;
    let pageAt = 0;
    const varint = (): number => {
      const low = control[controlAt++]!;
      if (low < 128) return low;
      const high = control[controlAt++]!;
      must(high > 0 && high < 128, 'varint');
      return (low & 127) + high * 128;
    };
    while (controlAt < control.length) {
      pageAt += varint();
      const length = varint();
      must(length > 0 && pageAt + length <= PAGE && dataAt + length <= data.length, 'run');
      data.copy(page, pageAt, dataAt, dataAt + length);
      pageAt += length;
      dataAt += length;
    }
    must(controlAt === control.length && dataAt === data.length, 'end of runs');
    return page;
  }
}

function recordsOf(body: Buffer, count: number): PageRecord[] {
  const pages = deltas(body, 0, count, 4);
  const codecs = body.subarray(count * 4, count * 5);
  const controlLengths = planes(body, count * 5, count, 2);
  const dataLengths = planes(body, count * 7, count, 2);
  const runs = codecs.filter((codec) => codec === 2).length;
  const bases = deltas(body, count * 9, runs, 8);
  let controlAt = count * 9 + runs * 8;
  let dataAt = controlAt + controlLengths.reduce((sum, length) => sum + Number(length), 0);
  let run = 0;
  const records: PageRecord[] = [];
  for (let i = 0; i < count; i++) {
    must(i === 0 || pages[i]! > pages[i - 1]!, 'order of pages in a frame');
    const control = body.subarray(controlAt, (controlAt += Number(controlLengths[i])));
    const data = body.subarray(dataAt, (dataAt += Number(dataLengths[i])));
    const base = codecs[i] === 2 ? bases[run++]! : 0n;
    records.push({ page: Number(pages[i]), codec: codecs[i]!, base, control, data });
  }
  must(dataAt === body.length, 'end of frame body');
  return records;
}

/** Plane p holds byte p of every number. */
function planes(bytes: Buffer, at: number, count: number, width: number): bigint[] {
  return Array.from({ length: count }, (_, i) => {
    let value = 0n;
    for (let plane = width - 1; plane >= 0; plane--)
      value = (value << 8n) | BigInt(bytes[at + plane * count + i]!);
    return value;
  });
}

function deltas(bytes: Buffer, at: number, count: number, width: number): bigint[] {
  let sum = 0n;
  return planes(bytes, at, count, width).map((delta) => (sum = BigInt.asUintN(width * 8, sum + delta)));
}

function entropy(stage: number, stored: Buffer, rawLength: number): Buffer {
  must(stage === 0 || stage === 1, 'entropy stage');
  const raw = stage === 1 ? Buffer.from(decompress(stored, rawLength)) : stored;
  must(raw.length === rawLength, 'raw length');
  return raw;
}

function sealed(folder: string, key: string): unknown {
  const text = readFileSync(join(folder, key));
  const line = text.subarray(0, text.length - 66);
  must(text.subarray(-66).toString('latin1') === `\n${sha256(line).toString('hex')}\n`, `seal of ${key}`);
  return JSON.parse(line.toString('utf8'));
}

function sha256(...parts: readonly Uint8Array[]): Buffer {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
}

function hex8(seq: number): string {
  return seq.toString(16).padStart(8, '0');
}

function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(`not as docs/format.md says: ${what}`);
}
