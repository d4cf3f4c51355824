/**
 * Whether what a restore overwrites can be taken up: by the pool of a thin volume, which makes new chunks of
 * what its snapshots share, and by the other snapshots of a thick one, into which what was there is saved
 * first. One that has no room overflows, and is lost.
 */

import { open } from 'node:fs/promises';

import { BLOCK_BYTES, type DifferingRuns } from './differing-runs.js';
import type { LogicalVolume } from './logical-volumes.js';

/** A snapshot keeps an index beside the data: 16 bytes for each chunk, in whole chunks. */
const INDEX_SHARE = 1.02;
const SPARE_BYTES = 1 << 20;

export interface RoomQuestion {
  readonly origin: LogicalVolume;
  /** The snapshot that is put back; it has what is overwritten. */
  readonly snapshot: LogicalVolume;
  /** All logical volumes of the host. */
  readonly volumes: readonly LogicalVolume[];
  /** What is overwritten. */
  readonly runs: DifferingRuns;
}

/** @returns the first that has none, undefined when all have */
export async function withoutRoom({
  origin,
  snapshot,
  volumes,
  runs,
}: RoomQuestion): Promise<LogicalVolume | undefined> {
  if (runs.blockCount === 0) return undefined;
  for (const other of volumes.filter(({ vgName }) => vgName === origin.vgName)) {
    const isPool = origin.kind === 'thin' && other.name === origin.pool;
    const isSnapshot =
      other.kind !== 'thin' &&
      other.origin === origin.name &&
      other.name !== snapshot.name &&
      !other.isInvalid;
    if (!isPool && !isSnapshot) continue;
    const freeBytes = (other.sizeBytes * (100 - other.dataPercent)) / 100 - SPARE_BYTES;
    const chunks = chunksOf(runs, other);
    if (chunks.size * chunkBytesOf(other) * INDEX_SHARE <= freeBytes) continue;
    // Chunks that it has saved already need no room. Looked at only when it matters.
    const saved = isSnapshot ? await savedChunks(runs, origin, other) : new Set();
    if ((chunks.size - saved.size) * chunkBytesOf(other) * INDEX_SHARE > freeBytes) return other;
  }
  return undefined;
}

function chunkBytesOf({ chunkBytes }: LogicalVolume): number {
  return Math.max(chunkBytes, BLOCK_BYTES);
}

function chunksOf(runs: DifferingRuns, volume: LogicalVolume): ReadonlySet<number> {
  const blocks = chunkBytesOf(volume) / BLOCK_BYTES;
  const chunks = new Set<number>();
  for (const block of runs.blocks()) chunks.add(Math.floor(block / blocks));
  return chunks;
}

/** Counts the overwritten chunks in which the snapshot has something else than the volume now. */
async function savedChunks(
  runs: DifferingRuns,
  origin: LogicalVolume,
  snapshot: LogicalVolume,
): Promise<ReadonlySet<number>> {
  const blocks = chunkBytesOf(snapshot) / BLOCK_BYTES;
  const saved = new Set<number>();
  const now = await open(pathOf(origin), 'r');
  try {
    const then = await open(pathOf(snapshot), 'r');
    try {
      const [a, b] = [Buffer.alloc(BLOCK_BYTES), Buffer.alloc(BLOCK_BYTES)];
      for (const block of runs.blocks()) {
        const chunk = Math.floor(block / blocks);
        if (saved.has(chunk)) continue;
        await now.read(a, 0, BLOCK_BYTES, block * BLOCK_BYTES);
        await then.read(b, 0, BLOCK_BYTES, block * BLOCK_BYTES);
        if (a.compare(b) !== 0) saved.add(chunk);
      }
    } finally {
      await then.close();
    }
  } finally {
    await now.close();
  }
  return saved;
}

export function pathOf({ vgName, name }: LogicalVolume): string {
  return `/dev/${vgName}/${name}`;
}
