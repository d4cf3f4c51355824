/**
 * Putting logical volumes back to the snapshots of a checkpoint.
 *
 * What differs is copied from the snapshot to the volume, 4 KiB by 4 KiB, instead of merging the snapshot: it
 * stays, and with it all others of the volume. For a thick snapshot that costs no room in it, since what
 * differs was written after it and so lies in it already; other snapshots of the volume have to take up what
 * is overwritten, so their room is looked at before the first write.
 *
 * A restore that is killed in the middle leaves the volume half way. The same restore, taken again, finishes
 * it.
 */

import { open, type FileHandle } from 'node:fs/promises';

import { CheckpointError, describeError } from '../../../src/errors.js';
import { failureOf, runTool, type RunTool } from '../run-tool.js';
import { diskLost } from '../snapshot-errors.js';
import { stillOpen } from '../still-open.js';
import { BLOCK_BYTES, DifferingRuns } from './differing-runs.js';
import { isVolumeName, listVolumes, type LogicalVolume } from './logical-volumes.js';
import type { VolumeSnapshot } from './lvm-record.js';
import { pathOf, withoutRoom } from './room.js';

const ACTIVATE_LIMIT_MS = 30_000;
/**
 * A QEMU that was killed keeps its disks until the last of its threads has ended; udev opens what is new to
 * look at it.
 */
const CLOSING_WAIT_MS = 5000;
const READ_BYTES = 1 << 20;

interface Pair {
  readonly disk: VolumeSnapshot;
  readonly origin: LogicalVolume;
  readonly snapshot: LogicalVolume;
  /** All of the host. */
  readonly volumes: readonly LogicalVolume[];
}

/**
 * Whether all can be put back, before anything is touched.
 * @throws RESTORE_FAILED when a snapshot is gone or has overflowed, RESTORE_TARGET_BUSY when a volume is open
 */
export async function checkVolumes(
  disks: readonly VolumeSnapshot[],
  run: RunTool = runTool,
  waitMs = CLOSING_WAIT_MS,
): Promise<void> {
  const open = await stillOpen(() => openAmong(disks, run), waitMs);
  if (open === undefined) return;
  const { origin, disk } = open;
  throw new CheckpointError(
    'RESTORE_TARGET_BUSY',
    `the logical volume ${nameOf(origin)} is open: a VM runs on it, or it is mounted`,
    { hint: 'stop whoever uses it first (lsof, dmsetup ls --tree)', detail: { path: disk.path } },
  );
}

async function openAmong(disks: readonly VolumeSnapshot[], run: RunTool): Promise<Pair | undefined> {
  return (await pairsOf(disks, run)).find(({ origin }) => origin.isOpen);
}

/** @throws RESTORE_FAILED with nothing written for want of room, or in the middle when a device fails */
export async function writeBackVolumes(
  disks: readonly VolumeSnapshot[],
  run: RunTool = runTool,
): Promise<void> {
  const works: { readonly pair: Pair; readonly paths: Paths; readonly runs: DifferingRuns }[] = [];
  for (const pair of await pairsOf(disks, run)) {
    const paths = await activate(pair, run);
    const runs = await differing(paths);
    const full = await withoutRoom({ ...pair, runs });
    if (full !== undefined) {
      throw diskLost(
        `putting ${nameOf(pair.origin)} back overwrites ${runs.blockCount} blocks of 4 KiB, for which ${nameOf(full)} has no room (${full.dataPercent} % full)`,
        `extend it (lvextend ${nameOf(full)}), or remove it if no checkpoint needs it`,
      );
    }
    works.push({ pair, paths, runs });
  }
  // All are looked at before the first is written.
  for (const { pair, paths, runs } of works) {
    try {
      await copy(paths, runs);
    } catch (cause) {
      const step = `putting ${nameOf(pair.origin)} back to ${pair.snapshot.name}: ${describeError(cause)}`;
      throw new CheckpointError('RESTORE_FAILED', step, { cause });
    }
  }
}

/** @throws RESTORE_FAILED when a volume or its snapshot is not there any more */
export async function pairsOf(disks: readonly VolumeSnapshot[], run: RunTool): Promise<readonly Pair[]> {
  if (disks.length === 0) return [];
  const list = await listVolumes(run);
  if ('whyNot' in list) throw diskLost(`cannot ask for logical volumes: ${list.whyNot}`);
  return disks.map((disk) => pairOf(disk, list.volumes));
}

function pairOf(disk: VolumeSnapshot, volumes: readonly LogicalVolume[]): Pair {
  const { volume, snapshotName, path } = disk;
  if (![volume.vgName, volume.name, snapshotName].every(isVolumeName))
    throw diskLost(`the checkpoint does not say which logical volume the disk ${path} is`);
  const find = (name: string): LogicalVolume | undefined =>
    volumes.find((candidate) => candidate.vgName === volume.vgName && candidate.name === name);
  const origin = find(volume.name);
  const snapshot = find(snapshotName);
  if (origin?.uuid !== volume.uuid)
    throw diskLost(
      `the logical volume ${volume.vgName}/${volume.name} of the checkpoint is gone, or another one has its name`,
    );
  if (snapshot?.origin !== origin.name)
    throw diskLost(`${nameOf(origin)} has no snapshot ${snapshotName} any more`);
  if (snapshot.isInvalid || (snapshot.kind !== 'thin' && snapshot.dataPercent >= 100))
    throw diskLost(`the snapshot ${nameOf(snapshot)} has overflowed: what it held is lost`);
  if (snapshot.kind === 'thin' && snapshot.sizeBytes !== origin.sizeBytes)
    throw diskLost(`${nameOf(origin)} has another size than when the checkpoint was taken`);
  return { disk, origin, snapshot, volumes };
}

interface Paths {
  readonly origin: string;
  readonly snapshot: string;
}

/** A thin snapshot is not active until somebody wants it. */
async function activate({ origin, snapshot }: Pair, run: RunTool): Promise<Paths> {
  for (const volume of [origin, snapshot]) {
    if (volume.device !== '') continue;
    const result = await run(
      'lvm',
      ['lvchange', '--quiet', '--activate', 'y', '--ignoreactivationskip', nameOf(volume)],
      ACTIVATE_LIMIT_MS,
    );
    const failure = failureOf('lvm lvchange', result);
    if (failure !== '') throw diskLost(`${nameOf(volume)} cannot be activated: ${failure}`);
  }
  return { origin: pathOf(origin), snapshot: pathOf(snapshot) };
}

async function differing({ origin, snapshot }: Paths): Promise<DifferingRuns> {
  const runs = new DifferingRuns();
  await withFiles(origin, 'r', snapshot, async (now, then) => {
    const [a, b] = [Buffer.alloc(READ_BYTES), Buffer.alloc(READ_BYTES)];
    for (let at = 0; ;) {
      const [x, y] = [await now.read(a, 0, READ_BYTES, at), await then.read(b, 0, READ_BYTES, at)];
      if (x.bytesRead !== y.bytesRead) throw diskLost(`${origin} and ${snapshot} have different sizes`);
      if (x.bytesRead === 0) return;
      for (let in_ = 0; in_ < x.bytesRead; in_ += BLOCK_BYTES) {
        const end = Math.min(in_ + BLOCK_BYTES, x.bytesRead);
        if (a.compare(b, in_, end, in_, end) !== 0) runs.add((at + in_) / BLOCK_BYTES);
      }
      at += x.bytesRead;
    }
  });
  return runs;
}

async function copy({ origin, snapshot }: Paths, runs: DifferingRuns): Promise<void> {
  if (runs.blockCount === 0) return;
  await withFiles(origin, 'r+', snapshot, async (now, then) => {
    const buffer = Buffer.alloc(READ_BYTES);
    for (const { firstBlock, blockCount } of runs.pieces(READ_BYTES / BLOCK_BYTES)) {
      const at = firstBlock * BLOCK_BYTES;
      // The last block may be cut off by the end of the device.
      const { bytesRead } = await then.read(buffer, 0, blockCount * BLOCK_BYTES, at);
      for (let done = 0; done < bytesRead;) {
        done += (await now.write(buffer, done, bytesRead - done, at + done)).bytesWritten;
      }
    }
    await now.sync();
  });
}

async function withFiles(
  origin: string,
  flags: 'r' | 'r+',
  snapshot: string,
  work: (now: FileHandle, then: FileHandle) => Promise<void>,
): Promise<void> {
  const now = await open(origin, flags);
  try {
    const then = await open(snapshot, 'r');
    try {
      await work(now, then);
    } finally {
      await then.close();
    }
  } finally {
    await now.close();
  }
}

function nameOf({ vgName, name }: LogicalVolume): string {
  return `${vgName}/${name}`;
}
