/**
 * A qcow2 image whose only content is one internal snapshot with a vmstate: the form in which `snapshot-load` takes a
 * device state. Clusters of 64 KiB, version 3, refcounts of 16 bits; the disk in it has one cluster, which is empty.
 *
 *     cluster 0   header            1   refcount table, one entry   2   refcount block     3   active L1 table, empty
 *     then        the vmstate       its L2 tables                   its L1 table           the snapshot table
 *
 * In the snapshot's L1 table entry 0 is the disk; the vmstate begins behind that, at entry 1. Every cluster has one
 * reference, so that `qemu-img check` finds nothing. Source: docs/interop/qcow2.txt of QEMU.
 */

const CLUSTER_BYTES = 1 << 16;
const CLUSTER_BITS = 16;
/** Entries of an L2 table, or of an L1 table that fills a cluster. */
const ENTRIES = CLUSTER_BYTES / 8;
/** Refcounts in one block. */
const REFCOUNTS = CLUSTER_BYTES / 2;
/** What an L2 table covers. */
const BYTES_PER_TABLE = ENTRIES * CLUSTER_BYTES;
const HEADER_BYTES = 104;
const FIRST_FREE = 4;
/** Of the fixed part of an entry of the snapshot table, and of what version 3 adds. */
const ENTRY_BYTES = 40;
const EXTRA_BYTES = 24;
const SNAPSHOT_ID = '1';

/**
 * Bytes that one refcount block allows, tables taken off: 2 GiB, less a MiB. A device state has at most half of it
 * (`MAX_DEVICE_STATE_BYTES`).
 */
export const MAX_VMSTATE_BYTES = (REFCOUNTS - 16) * CLUSTER_BYTES;

/**
 * @param tag name of the snapshot, at most 255 bytes
 * @returns the image; caller owns it
 * @throws RangeError for a longer tag, or a vmstate above `MAX_VMSTATE_BYTES`
 */
export function vmstateImage(tag: string, vmstate: Uint8Array): Buffer {
  const name = Buffer.from(tag);
  if (name.length === 0 || name.length > 255) throw new RangeError(`"${tag}" cannot name a snapshot`);
  if (vmstate.length > MAX_VMSTATE_BYTES) throw new RangeError(`a vmstate of ${vmstate.length} bytes`);
  const dataClusters = clustersOf(vmstate.length);
  const tableCount = Math.max(1, Math.ceil(vmstate.length / BYTES_PER_TABLE));
  const data = FIRST_FREE;
  const tables = data + dataClusters;
  const l1 = tables + tableCount;
  const snapshots = l1 + 1;
  const clusterCount = snapshots + 1;
  const image = Buffer.alloc(clusterCount * CLUSTER_BYTES);
  const l1Entries = 1 + tableCount;
  writeHeader(image, l1Entries, snapshots);
  put64(image, 1 * CLUSTER_BYTES, 2 * CLUSTER_BYTES);
  for (let i = 0; i < clusterCount; i++) image.writeUInt16BE(1, 2 * CLUSTER_BYTES + i * 2);
  image.set(vmstate, data * CLUSTER_BYTES);
  for (let i = 0; i < dataClusters; i++)
    put64(image, tables * CLUSTER_BYTES + i * 8, (data + i) * CLUSTER_BYTES);
  for (let i = 0; i < tableCount; i++)
    put64(image, l1 * CLUSTER_BYTES + (1 + i) * 8, (tables + i) * CLUSTER_BYTES);
  writeSnapshot(image.subarray(snapshots * CLUSTER_BYTES), {
    name,
    l1Offset: l1 * CLUSTER_BYTES,
    l1Entries,
    vmstateBytes: vmstate.length,
  });
  return image;
}

function writeHeader(image: Buffer, l1Entries: number, snapshotCluster: number): void {
  image.write('QFI\xfb', 0, 'latin1');
  image.writeUInt32BE(3, 4);
  image.writeUInt32BE(CLUSTER_BITS, 20);
  put64(image, 24, CLUSTER_BYTES);
  image.writeUInt32BE(l1Entries, 36);
  put64(image, 40, 3 * CLUSTER_BYTES);
  put64(image, 48, 1 * CLUSTER_BYTES);
  image.writeUInt32BE(1, 56);
  image.writeUInt32BE(1, 60);
  put64(image, 64, snapshotCluster * CLUSTER_BYTES);
  // Refcounts of 2^4 bits. The header extensions end at once, with zeros.
  image.writeUInt32BE(4, 96);
  image.writeUInt32BE(HEADER_BYTES, 100);
}

interface Snapshot {
  readonly name: Buffer;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly vmstateBytes: number;
}

function writeSnapshot(table: Buffer, { name, l1Offset, l1Entries, vmstateBytes }: Snapshot): void {
  put64(table, 0, l1Offset);
  table.writeUInt32BE(l1Entries, 8);
  table.writeUInt16BE(SNAPSHOT_ID.length, 12);
  table.writeUInt16BE(name.length, 14);
  // Time and clock of the VM are 0, and so is the vmstate's size in its old place of 32 bits.
  table.writeUInt32BE(EXTRA_BYTES, 36);
  put64(table, ENTRY_BYTES, vmstateBytes);
  put64(table, ENTRY_BYTES + 8, CLUSTER_BYTES);
  // No number of instructions is known.
  table.fill(0xff, ENTRY_BYTES + 16, ENTRY_BYTES + 24);
  table.write(SNAPSHOT_ID, ENTRY_BYTES + EXTRA_BYTES, 'latin1');
  name.copy(table, ENTRY_BYTES + EXTRA_BYTES + SNAPSHOT_ID.length);
}

function clustersOf(bytes: number): number {
  return Math.ceil(bytes / CLUSTER_BYTES);
}

function put64(into: Buffer, at: number, value: number): void {
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  into.writeUInt32BE(value % 2 ** 32, at + 4);
}
