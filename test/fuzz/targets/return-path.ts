/**
 * What a QEMU whose memory is being filled says to its page server. It is the VM's side, so a guest that has broken out of its
 * QEMU may have written it. However the bytes are cut, they mean the same, and no page is asked for that there is not.
 */

import { ReturnPath, type ReturnMessage } from '../../../adapters/qemu/postcopy/return-path.js';
import { isCheckpointError, type CheckpointError } from '../../../src/errors.js';
import { layOut } from '../../../src/hypervisor/memory-layout.js';
import { mutateBytes } from '../mutate-bytes.js';
import { must, type OpenTarget } from '../target.js';

const LAYOUT = layOut([
  { id: 'pc.ram', sizeBytes: 1 << 20 },
  { id: '0000:00:02.0/vga.vram', sizeBytes: 100 * 4096 },
]);
const BITMAP_END = 0x0123456789abcdefn;

function message(type: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt16BE(type, 0);
  head.writeUInt16BE(payload.length, 2);
  return Buffer.concat([head, payload]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

function named(id: string): Buffer {
  return Buffer.concat([Buffer.of(id.length), Buffer.from(id)]);
}

function bitmap({ id, pageCount }: { readonly id: string; readonly pageCount: number }): Buffer {
  const sizeBytes = Math.ceil(pageCount / 64) * 8;
  const body = [u64(BigInt(sizeBytes)), Buffer.alloc(sizeBytes, 0xa5), u64(BITMAP_END)];
  return Buffer.concat([message(5, named(id)), ...body]);
}

const SEEDS = [
  Buffer.concat([
    message(2, u32(3)),
    message(3, Buffer.concat([u64(8192n), u32(4096), named('pc.ram')])),
    message(4, Buffer.concat([u64(4096n), u32(8192)])),
    message(1, u32(0)),
  ]),
  Buffer.concat([...LAYOUT.regions.map(bitmap), message(6, u32(1)), message(7, Buffer.alloc(0))]),
];

/** All messages, read in pieces of this size, as text; and how it ended. */
function read(
  input: Uint8Array,
  pieceBytes: number,
): { readonly text: string; readonly error: CheckpointError | undefined } {
  const path = new ReturnPath(LAYOUT);
  const messages: ReturnMessage[] = [];
  let error: CheckpointError | undefined;
  try {
    for (let at = 0; at < input.length; at += pieceBytes)
      for (const one of path.read(input.subarray(at, at + pieceBytes))) messages.push(one);
  } catch (caught) {
    if (!isCheckpointError(caught)) throw caught;
    error = caught;
  }
  for (const one of messages) {
    if (one.kind === 'pages')
      must(one.firstPage + one.pageCount <= LAYOUT.pageSpan && one.pageCount > 0, 'pages that there are');
    if (one.kind === 'received') must(one.bitmap.length * 8 >= one.region.pageCount, 'a bit for each page');
  }
  return { text: JSON.stringify(messages), error };
}

export const openTarget: OpenTarget = () =>
  Promise.resolve({
    seeds: SEEDS,
    mutate: mutateBytes,
    run: (input) => {
      const whole = read(input, Math.max(1, input.length));
      const cut = read(input, 3);
      must(whole.text === cut.text, 'the same messages however they are cut');
      if (whole.error !== undefined) throw whole.error;
      return Promise.resolve(`messages ${(JSON.parse(whole.text) as unknown[]).length}`);
    },
  });
