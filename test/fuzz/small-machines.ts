/** Small machines as the hypervisors' own tools write them: what the targets of streams begin from. */

import { captureHvmState } from '../../adapters/xen/stream/device-state.js';
import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { GUEST_TYPE, LIBXC_RECORD, LIBXL_RECORD } from '../../adapters/xen/stream/format.js';
import { encodeRecord } from '../../adapters/xen/stream/records.js';
import { writeSaveFile } from '../../adapters/xen/stream/writer.js';
import type { XenDeviceState } from '../../adapters/xen/stream/device-state.js';
import { writeMigrationStream } from '../../adapters/qemu/stream/writer.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FakeXen } from '../support/fake-xen.js';

const UUID = '01234567-89ab-cdef-0123-456789abcdef';
/** Frames of the small guest of Xen: a few, and two special ones below 4 GiB. */
const FRAMES = Uint32Array.of(0, 3, 5, 2, 0xfeff8, 2);
const VERSION = { major: 4, minor: 17 };

export const SMALL_LAYOUT = layOut([
  { id: 'pc.ram', sizeBytes: 6 * PAGE_SIZE_BYTES },
  { id: 'vga.vram', sizeBytes: 2 * PAGE_SIZE_BYTES },
]);

/** Device sections with a name, a body and a footer; QEMU's own are in the corpus. */
const DEVICES = Buffer.concat([
  Buffer.from('0400000003', 'hex'),
  Buffer.from('\x05timer', 'latin1'),
  Buffer.from('00000000000000020102030405060708', 'hex'),
  Buffer.from('7e00000003', 'hex'),
  Buffer.from('0400000009', 'hex'),
  Buffer.from('\x0bglobalstate', 'latin1'),
  Buffer.from('0000000000000001', 'hex'),
  Buffer.from('00000008', 'hex'),
  Buffer.from('running\0'.padEnd(100, '\0'), 'latin1'),
  Buffer.from('7e00000009', 'hex'),
]);

/** Pages hold their own number; every second one is zero. */
// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesOf(layout: MemoryLayout): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of layout.regions) {
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      const bytes = page % 2 === 0 ? null : Buffer.alloc(PAGE_SIZE_BYTES, page);
      yield { firstPage: page, pageCount: 1, bytes };
    }
  }
}

export async function bytesOf(parts: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = [];
  for await (const part of parts) all.push(Buffer.from(part));
  return Buffer.concat(all);
}

/** A migration of QEMU, without a description at its end. */
export function smallMigration(): Promise<Buffer> {
  return migrationOf(SMALL_LAYOUT, () => pagesOf(SMALL_LAYOUT));
}

export function migrationOf(layout: MemoryLayout, pages: () => AsyncIterable<PageChunk>): Promise<Buffer> {
  return bytesOf(
    writeMigrationStream({ machineType: 'pc-i440fx-7.2', layout, deviceSections: DEVICES, pages }),
  );
}

/** The same with a description of its sections, as QEMU writes one. */
export async function describedMigration(): Promise<Buffer> {
  const field = (size: number): object => ({ name: 'x', size });
  const devices = [
    { name: 'timer', instance_id: 0, fields: [field(8)] },
    { name: 'globalstate', instance_id: 0, fields: [field(4), { ...field(1), array_len: 100 }] },
  ];
  const json = Buffer.from(JSON.stringify({ page_size: 4096, devices }));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(json.length);
  // In the place of the length and "{}".
  return Buffer.concat([(await smallMigration()).subarray(0, -6), length, json]);
}

export function guestConfig(type: string): string {
  return JSON.stringify({
    c_info: { type, name: 'web1', uuid: UUID },
    b_info: { max_memkb: 64, target_memkb: 64, tree: { a: ['b', 1] } },
  });
}

const SMALL_XEN_LAYOUT = layoutOf([
  { firstFrame: 0, frameCount: 512 },
  { firstFrame: 0xfee00, frameCount: 512 },
]);

function savedGuest(type: string, state: XenDeviceState): Promise<Buffer> {
  const content = { config: guestConfig(type), version: VERSION, layout: SMALL_XEN_LAYOUT, state };
  return bytesOf(writeSaveFile({ ...content, pages: pagesOf(SMALL_XEN_LAYOUT) }));
}

export function pvhState(): XenDeviceState {
  const xen = new FakeXen();
  return captureHvmState(new XenDomain(xen, xen.domid), FRAMES);
}

export function pvState(): XenDeviceState {
  const record = (type: number, ...bytes: number[]): { type: number; body: Uint8Array } => ({
    type,
    body: Uint8Array.from(bytes),
  });
  return {
    guestType: GUEST_TYPE.pv,
    presentFrames: Uint32Array.of(0, 4),
    pageTypes: Uint8Array.of(0, 1, 0, 2),
    before: [record(LIBXC_RECORD.pvInfo, 8, 4, 0, 0, 0, 0, 0, 0)],
    after: [record(LIBXC_RECORD.pvFrames, 0, 0, 0, 0, 3, 0, 0, 0), record(LIBXC_RECORD.sharedInfo, 2)],
  };
}

/** Files of `xl save`: a PVH guest, an HVM guest with a device model, a PV guest. */
export async function smallSaveFiles(): Promise<readonly Buffer[]> {
  return [
    await savedGuest('pvh', pvhState()),
    await savedGuest('hvm', { ...pvhState(), emulator: Buffer.from('QEVM and so on') }),
    await savedGuest('pv', pvState()),
  ];
}

/** What `xl remus` sends of a PVH guest: two states, the second with one page. */
export async function smallRemusStream(): Promise<Buffer> {
  const none = new Uint8Array(0);
  const end = Buffer.concat([
    encodeRecord({ type: LIBXC_RECORD.checkpoint, body: none }),
    encodeRecord({ type: LIBXL_RECORD.checkpointEnd, body: none }),
  ]);
  const head = Buffer.alloc(16);
  head.writeUInt32LE(1, 0);
  head.writeUInt32LE(2, 8);
  const page = encodeRecord({
    type: LIBXC_RECORD.pageData,
    body: Buffer.concat([head, Buffer.alloc(PAGE_SIZE_BYTES, 9)]),
  });
  const file = await savedGuest('pvh', pvhState());
  // Without the ends of both layers.
  return Buffer.concat([file.subarray(0, -16), end, page, ...pvhState().after.map(encodeRecord), end]);
}
