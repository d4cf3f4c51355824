/**
 * Traces with right checksums: the header as JSON, blocks not compressed; both are sealed before the reader gets them.
 *
 *     input = JSON | 0a | block*       block = u32 length of body | u32 x 6, the fields of `BlockHeader` | u8 fits | body
 */

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { TraceWriter } from '../../../bench/trace/trace-writer.js';
import { compress, decompress } from '../../../src/ffi/zstd.js';
import { layOut } from '../../../src/hypervisor/memory-layout.js';
import {
  BLOCK_HEADER_BYTES,
  encodeBlock,
  FILE_HEADER_BYTES,
  type BlockHeader,
} from '../../../src/study/trace/trace-format.js';
import { TraceReader } from '../../../src/study/trace/trace-reader.js';
import { mutateBytes } from '../mutate-bytes.js';
import { mutateJson } from '../mutate-json.js';
import { justifiedBytes, must, type Mutate, type OpenTarget } from '../target.js';

const BLOCK_HEAD_BYTES = 29;
/** A block holds up to 2048 pages, before and after. */
const BLOCK_PAGES_BYTES = 40 << 20;

function partsOf(input: Uint8Array): readonly [json: Buffer, blocks: Buffer] {
  const bytes = Buffer.from(input);
  const end = bytes.indexOf(0x0a);
  return end < 0 ? [bytes, Buffer.alloc(0)] : [bytes.subarray(0, end), bytes.subarray(end + 1)];
}

const mutate: Mutate = (input, random, others) => {
  const [json, blocks] = partsOf(input);
  return random(3) === 0
    ? Buffer.concat([mutateJson(json, random, others), Buffer.from('\n'), blocks])
    : Buffer.concat([
        json,
        Buffer.from('\n'),
        mutateBytes(
          blocks,
          random,
          others.map((one) => partsOf(one)[1]),
        ),
      ]);
};

/** The file that the input stands for. */
function traceOf(input: Uint8Array): Buffer {
  const [json, blocks] = partsOf(input);
  const head = Buffer.alloc(FILE_HEADER_BYTES);
  head.write('CAIRNTRC', 'latin1');
  head.writeUInt16LE(1, 8);
  head.writeUInt32LE(json.length, 12);
  createHash('sha256').update(head.subarray(0, 16)).update(json).digest().copy(head, 16);
  const parts: Uint8Array[] = [head, json];
  for (let at = 0; at + BLOCK_HEAD_BYTES <= blocks.length;) {
    const field = (i: number): number => blocks.readUInt32LE(at + 4 * i);
    const body = blocks.subarray(at + BLOCK_HEAD_BYTES, at + BLOCK_HEAD_BYTES + field(0));
    const fits = blocks[at + BLOCK_HEAD_BYTES - 1] !== 0;
    const stored = body.length === 0 ? body : compress(body, 1);
    const header: BlockHeader = {
      kind: field(1) & 0xff,
      epoch: field(2),
      pageCount: field(3),
      storedBytes: fits ? stored.length : field(4),
      rawBytes: fits ? body.length : field(5),
      runUs: field(6),
    };
    parts.push(encodeBlock(header, stored));
    at += BLOCK_HEAD_BYTES + body.length;
  }
  return Buffer.concat(parts);
}

/** The input that stands for the file. */
function inputOf(trace: Buffer): Uint8Array {
  const jsonEnd = FILE_HEADER_BYTES + trace.readUInt32LE(12);
  const parts: Uint8Array[] = [trace.subarray(FILE_HEADER_BYTES, jsonEnd), Buffer.from('\n')];
  for (let at = jsonEnd; at < trace.length;) {
    const [storedBytes, rawBytes] = [trace.readUInt32LE(at + 16), trace.readUInt32LE(at + 20)];
    const stored = trace.subarray(at + BLOCK_HEADER_BYTES, at + BLOCK_HEADER_BYTES + storedBytes);
    const body = rawBytes === 0 ? stored : decompress(stored, rawBytes);
    const head = Buffer.alloc(BLOCK_HEAD_BYTES, 1);
    head.writeUInt32LE(body.length, 0);
    head.writeUInt32LE(trace.readUInt8(at + 4), 4);
    for (const i of [2, 3, 4, 5, 6]) head.writeUInt32LE(trace.readUInt32LE(at + 4 * i), 4 * i);
    parts.push(head, body);
    at += BLOCK_HEADER_BYTES + storedBytes;
  }
  return Buffer.concat(parts);
}

function seed(path: string): Uint8Array {
  const header = {
    workload: 'test',
    description: 'made by a test',
    epochMs: 200,
    layout: layOut([{ id: 'pc.ram', sizeBytes: 1 << 20 }]),
    hypervisor: 'kvm',
    machineType: 'pc-i440fx-7.2',
    tracker: 'pagemap-scan',
    recorded: '2026-11-23T00:00:00.000Z',
  };
  const writer = new TraceWriter(path, header, 1);
  const filled = (...values: number[]): Uint8Array =>
    Buffer.concat(values.map((value) => Buffer.alloc(4096, value)));
  const epoch = { runMs: 200, pages: Uint32Array.of(3, 5, 9), hasContent: Uint8Array.of(1, 0, 1) };
  writer.append({ ...epoch, before: filled(0, 1), after: filled(1, 2) });
  writer.append({ ...epoch, before: filled(1, 2), after: filled(7, 8) });
  writer.close();
  return inputOf(readFileSync(path));
}

export const openTarget: OpenTarget = (workDir) => {
  const path = join(workDir, 'a.trace');
  return Promise.resolve({
    seeds: [seed(path)],
    mutate,
    allowedBytes: (inputBytes) => justifiedBytes(inputBytes) + BLOCK_PAGES_BYTES,
    run: (input) => {
      writeFileSync(path, traceOf(input));
      const reader = TraceReader.open(path);
      let epochs = 0;
      try {
        for (const { pages, contentPages, before, after } of reader.epochs()) {
          must(contentPages.length <= pages.length, 'contents are of pages');
          must(before.length === contentPages.length * 4096 && after.length === before.length, 'whole pages');
          epochs++;
        }
      } finally {
        reader.close();
      }
      return Promise.resolve(`epochs ${epochs}`);
    },
  });
};
