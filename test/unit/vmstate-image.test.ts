import { describe, expect, it } from '@jest/globals';

import { vmstateImage } from '../../adapters/qemu/vmstate-image.js';

const CLUSTER = 65_536;

/** What is in the first snapshot of a qcow2 image. Shares no code with the writer. */
function firstSnapshot(image: Buffer): { name: string; vmstate: Buffer } {
  const u64 = (at: number): number => Number(image.readBigUInt64BE(at));
  expect(image.readUInt32BE(0)).toBe(0x514649fb);
  expect([image.readUInt32BE(4), 1 << image.readUInt32BE(20), image.readUInt32BE(60)]).toEqual([
    3,
    CLUSTER,
    1,
  ]);
  const entry = u64(64);
  const [l1, l1Entries] = [u64(entry), image.readUInt32BE(entry + 8)];
  const [idLength, nameLength] = [image.readUInt16BE(entry + 12), image.readUInt16BE(entry + 14)];
  const extra = image.readUInt32BE(entry + 36);
  const sizeBytes = u64(entry + 40);
  const name = image.toString('latin1', entry + 40 + extra + idLength).slice(0, nameLength);
  const diskClusters = u64(24) / CLUSTER;
  const clusters: Buffer[] = [];
  for (let i = 0; i < Math.ceil(sizeBytes / CLUSTER); i++) {
    // The vmstate begins behind what the L1 table of the disk covers.
    const guest = Math.ceil(diskClusters / 8192) * 8192 + i;
    expect(Math.floor(guest / 8192)).toBeLessThan(l1Entries);
    const l2 = u64(l1 + Math.floor(guest / 8192) * 8);
    const data = u64(l2 + (guest % 8192) * 8);
    clusters.push(image.subarray(data, data + CLUSTER));
  }
  return { name, vmstate: Buffer.concat(clusters).subarray(0, sizeBytes) };
}

describe('an image with a vmstate', () => {
  it.each([1, CLUSTER, CLUSTER + 1, 3_000_000])('holds all %i bytes of it', (sizeBytes) => {
    const vmstate = Buffer.from(Uint8Array.from({ length: sizeBytes }, (_, i) => (i * 7919) >>> 5));
    const image = vmstateImage('cairn-0123456789abcdef', vmstate);
    const found = firstSnapshot(image);
    expect(found.name).toBe('cairn-0123456789abcdef');
    expect(found.vmstate.equals(vmstate)).toBe(true);
  });

  it('counts one reference for each cluster, and none for others', () => {
    const image = vmstateImage('x', Buffer.alloc(70_000));
    const refcounts = image.subarray(2 * CLUSTER, 3 * CLUSTER);
    const counted = image.length / CLUSTER;
    for (let i = 0; i < CLUSTER / 2; i++) expect(refcounts.readUInt16BE(i * 2)).toBe(i < counted ? 1 : 0);
  });

  it.each(['', 'n'.repeat(256)])('is not made for the name %j', (tag) => {
    expect(() => vmstateImage(tag, Buffer.alloc(1))).toThrow(RangeError);
  });
});
