/**
 * Disks in raw or qcow2 files on a file system with reflinks (btrfs, XFS). In the pause the image is cloned
 * to `IMAGE.cairn-ID` beside it. A clone takes no room at first: both files share their blocks until one of
 * them is written to.
 *
 * What the clone holds is what the guest has written. `stop` makes QEMU wait for all requests, hand over what
 * its qcow2 driver keeps in memory (with cache=unsafe too) and flush; what lies in the page cache, the kernel
 * writes out before it clones. QEMU does not say when that flush fails; for a full file system, the likely
 * reason, the room is looked at.
 *
 *     before the pause   the file system is tried with small files; dirty pages of the page cache are written
 *                        out
 *     in the pause       clones without names, then a name for each: a Cairn killed before leaves nothing
 *     after the pause    clones and names are made durable
 *
 * A raw image is cloned unless told otherwise, since nobody else snapshots it. A qcow2 image is cloned only
 * with `--disks reflink`: the plan prefers the drivers of the hypervisor, whose snapshots cost the same
 * however fragmented the image is, and need no certain file system.
 *
 * Sources: do_vm_stop (system/cpus.c) and bdrv_co_flush (block/io.c) of QEMU, ioctl_ficlone(2).
 */

import { lstat, open, rm, statfs, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import type { DiskDriver } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, OverwrittenFile, VmDisk } from '../../../src/hypervisor/disks.js';
import { optionsFor, type DiskDriverKind, type DiskMeans } from '../disk-means.js';
import { withFrozenLayers } from '../qcow2/frozen-layers.js';
import { movedLayers } from '../qcow2/qcow2-records.js';
import { quoted } from '../shell-quote.js';
import { snapshotFailed } from '../snapshot-errors.js';
import { cloneExtents, copyNoCow, giveName, isOpenForWriting, openUnnamed } from './file-calls.js';
import { imageFileOf, type ImageFile } from './image-file.js';
import { clonePathFor, cloneRecord, cloneSnapshot, REFLINK, type CloneSnapshot } from './reflink-record.js';
import { bitmapsOfClones, checkClones, keepClones, rollBackClones } from './reflink-restore.js';

/** How long cloning one image may be expected to take. */
const DEFAULT_PAUSE_S = 2;
/** The guest stands still. */
const SNAPSHOT_LIMIT_MS = 20_000;
/** Before the pause; whatever is not written out by then is written out in it. */
const WRITE_OUT_LIMIT_MS = 15_000;
/** More than QEMU keeps of the metadata of an image: 32 MiB by default (docs/qcow2-cache.txt of QEMU). */
const ROOM_BYTES = 64 << 20;

const TRAITS = {
  name: REFLINK,
  medium: 'a file on btrfs or XFS',
  takenBy: 'storage',
  isRemovable: true,
} as const;

export const reflinkDriver: DiskDriverKind = {
  ...TRAITS,
  settings: [
    {
      flags: '--reflink-pause <seconds>',
      description: `how long the clone of an image on btrfs or XFS may be expected to take, by the pieces that it lies in (default: ${DEFAULT_PAUSE_S})`,
      key: 'pauseSeconds',
    },
  ],
  open: (means) => new ReflinkDriver(means),
};

export class ReflinkDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #cwd: string;
  readonly #maxPauseMs: number;
  readonly #limitMs: number;
  /** Images that the last `describe` found, by id of the disk. */
  readonly #images = new Map<string, ImageFile>();
  /** Images of the last `plan`. */
  #toWriteOut: readonly string[] = [];

  /** @throws USAGE */
  constructor(means: DiskMeans, limitMs = SNAPSHOT_LIMIT_MS) {
    this.#cwd = means.cwd;
    this.#maxPauseMs = pauseMsOf(optionsFor(means, REFLINK).pauseSeconds);
    this.#limitMs = limitMs;
  }

  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    this.#images.clear();
    this.#toWriteOut = [];
    return Promise.all(
      disks.map(async (disk) => {
        const answer = await imageFileOf(disk, this.#cwd, this.#maxPauseMs);
        if (answer === undefined) return disk;
        // Other drivers may take the disk.
        if ('whyNot' in answer)
          return disk.snapshotModes.length > 0
            ? disk
            : { ...disk, whyNoSnapshot: disk.whyNoSnapshot ?? answer.whyNot };
        this.#images.set(disk.id, answer);
        return { ...disk, snapshotModes: [...disk.snapshotModes, REFLINK] };
      }),
    );
  }

  /**
   * Writes out, right before the pause, what the kernel would write out in it. @returns whether that took
   * time
   */
  async checkStorage(): Promise<boolean> {
    const work = Promise.all(this.#toWriteOut.map(writeOut));
    await Promise.race([work, delay(WRITE_OUT_LIMIT_MS, undefined, { ref: false })]);
    return this.#toWriteOut.length > 0;
  }

  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    const planned = disks.flatMap((disk) => {
      const image = this.#images.get(disk.id);
      return image === undefined ? [] : [plannedClone(name, disk, image)];
    });
    this.#toWriteOut = planned.map(({ imagePath }) => imagePath);
    return planned.map(cloneRecord);
  }

  /** @throws DISK_SNAPSHOT_FAILED with nothing left behind, unless `detail.possiblyPresent` says so */
  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const planned = disks.map((disk) => {
      const image = this.#images.get(disk.id);
      if (image === undefined) throw failed(`${disk.path} is not known as an image that can be cloned`);
      return plannedClone(name, disk, image);
    });
    const attempt = new CloneAttempt(planned);
    const work = attempt.run();
    const isInTime = await Promise.race([work.then(() => true), delay(this.#limitMs, false, { ref: false })]);
    if (!isInTime) throw failed(`no end within ${this.#limitMs / 1000} s`, attempt.giveUp(work));
    const taken = planned.map(({ diskId, clonePath }) => ({ diskId, path: clonePath, overlayPath: '' }));
    const layers = await withFrozenLayers(taken, disks, this.#cwd);
    return planned.map((snapshot, i) => cloneRecord({ ...snapshot, frozen: layers[i]!.frozen ?? [] }));
  }

  /**
   * Makes snapshots that were just taken outlast a power cut, once the VM runs again.
   * @throws DISK_SNAPSHOT_FAILED
   */
  async makeDurable(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const paths = snapshots.map((record) => cloneSnapshot(record).clonePath);
    try {
      for (const path of [...paths, ...new Set(paths.map((path) => dirname(path)))]) await sync(path);
    } catch (cause) {
      throw failed(`the clones cannot be made durable: ${describeError(cause)}`);
    }
  }

  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const left: string[] = [];
    for (const record of snapshots) {
      const { clonePath } = cloneSnapshot(record);
      const why = await removeClone(clonePath).catch(describeError);
      if (why !== '') left.push(`${clonePath} (${why})`);
    }
    if (left.length > 0) throw failed('clones cannot be removed', left);
  }

  remedy(record: DiskSnapshot): string {
    return `rm ${quoted(cloneSnapshot(record).clonePath)}`;
  }

  needs(record: DiskSnapshot): readonly string[] {
    const { clonePath, frozen = [] } = cloneSnapshot(record);
    return [...new Set([clonePath, ...frozen.map(({ path }) => path)])];
  }

  overwrites(record: DiskSnapshot): OverwrittenFile {
    const { imagePath, clonePath } = cloneSnapshot(record);
    return {
      path: imagePath,
      instead: `copy the older state (cp --reflink=always ${quoted(clonePath)} NEW), and restore with the copy as disk and --keep-disks`,
    };
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await checkClones(snapshots.map(cloneSnapshot));
  }

  consequences(snapshots: readonly DiskSnapshot[]): Promise<readonly string[]> {
    return bitmapsOfClones(snapshots.map(cloneSnapshot));
  }

  /** Another clone beside the image. */
  async keep(name: string, snapshots: readonly DiskSnapshot[]): Promise<readonly DiskSnapshot[]> {
    const kept = snapshots.map(cloneSnapshot).map(({ diskId, path, imagePath, format }) => ({
      ...{ diskId, path, imagePath, format },
      clonePath: clonePathFor(imagePath, name),
    }));
    await keepClones(kept);
    return kept.map(cloneRecord);
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await rollBackClones(snapshots.map(cloneSnapshot));
  }

  /** A clone lies beside its image, so both go with their folder. */
  movedBy(record: DiskSnapshot, move: (path: string) => string): DiskSnapshot {
    const { path, imagePath, clonePath, frozen, ...clone } = cloneSnapshot(record);
    return cloneRecord({
      ...clone,
      path: move(path),
      imagePath: move(imagePath),
      clonePath: move(clonePath),
      ...(frozen === undefined ? {} : { frozen: movedLayers(frozen, move) }),
    });
  }
}

/** One clone of each image, all or none. */
class CloneAttempt {
  readonly #planned: readonly CloneSnapshot[];
  readonly #open: FileHandle[] = [];
  #hasBegunNaming = false;
  #isGivenUp = false;

  constructor(planned: readonly CloneSnapshot[]) {
    this.#planned = planned;
  }

  async run(): Promise<void> {
    try {
      // Files stay open until the last clone has ended: until then the kernel may still be about to look at
      // their descriptors.
      const results = await Promise.allSettled(this.#planned.map((one) => this.#clone(one)));
      const failures = results.flatMap((result) =>
        result.status === 'rejected' ? [describeError(result.reason)] : [],
      );
      if (failures.length > 0) throw failed(failures.join('; '));
      if (this.#isGivenUp) return;
      this.#hasBegunNaming = true;
      await this.#name(results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])));
    } finally {
      for (const file of this.#open) await file.close();
    }
  }

  /** Nobody waits for it any more. @returns what may come into being all the same */
  giveUp(work: Promise<void>): readonly string[] {
    this.#isGivenUp = true;
    work.catch(() => undefined);
    return this.#hasBegunNaming ? this.#planned.map(({ clonePath }) => clonePath) : [];
  }

  /** @returns the clone, which has no name yet */
  async #clone({ imagePath }: CloneSnapshot): Promise<FileHandle> {
    try {
      const image = this.#kept(await open(imagePath, 'r'));
      if (!isOpenForWriting(image)) throw new Error('the VM does not have this file open any more');
      await refuseFull(imagePath);
      const clone = this.#kept(await openUnnamed(dirname(imagePath)));
      copyNoCow(image, clone);
      await cloneExtents(image, clone);
      const { uid, gid } = await image.stat();
      // Without the right to, it stays ours.
      await clone.chown(uid, gid).catch(() => undefined);
      return clone;
    } catch (cause) {
      throw new Error(`${imagePath}: ${describeError(cause)}`, { cause });
    }
  }

  async #name(clones: readonly FileHandle[]): Promise<void> {
    const named: string[] = [];
    try {
      for (const [i, { clonePath }] of this.#planned.entries()) {
        await giveName(clones[i]!, clonePath).catch((cause: unknown) => {
          const why = systemErrorCode(cause) === 'EEXIST' ? 'exists already' : describeError(cause);
          throw new Error(`${clonePath}: ${why}`, { cause });
        });
        named.push(clonePath);
      }
    } catch (error) {
      for (const path of named) await rm(path, { force: true });
      throw failed(describeError(error));
    }
  }

  #kept(file: FileHandle): FileHandle {
    this.#open.push(file);
    return file;
  }
}

function plannedClone(name: string, { id, path }: VmDisk, image: ImageFile): CloneSnapshot {
  const { path: imagePath, format } = image;
  return { diskId: id, path, imagePath, format, clonePath: clonePathFor(imagePath, name) };
}

/**
 * Where there is room, the flush of `stop` cannot have failed for want of it. Besides, whatever the guest
 * overwrites after a clone needs room: a clone on a full file system would succeed, and the guest's next
 * write fail.
 */
async function refuseFull(path: string): Promise<void> {
  const { bavail, bsize } = await statfs(path);
  if (bavail * bsize < ROOM_BYTES)
    throw new Error(
      `its file system is full: less than ${ROOM_BYTES >> 20} MiB are left for what the guest overwrites`,
    );
}

/** @returns why it stays, empty when it is not there (any more) */
async function removeClone(path: string): Promise<string> {
  const found = await lstat(path).catch((error: unknown) => {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  });
  if (found === undefined) return '';
  if (!found.isFile()) return 'it is no regular file';
  const file = await open(path, 'r');
  try {
    if (isOpenForWriting(file)) return 'somebody has it open for writing';
  } finally {
    await file.close();
  }
  await rm(path, { force: true });
  return '';
}

/** A failure shows again where it matters. */
async function writeOut(path: string): Promise<void> {
  await withFile(path, (file) => file.datasync()).catch(() => undefined);
}

function sync(path: string): Promise<void> {
  return withFile(path, (file) => file.sync());
}

async function withFile(path: string, work: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await open(path, 'r');
  try {
    await work(file);
  } finally {
    await file.close();
  }
}

/** @throws USAGE */
function pauseMsOf(seconds: unknown): number {
  if (seconds === undefined) return DEFAULT_PAUSE_S * 1000;
  if (typeof seconds === 'string' && /^[0-9]{1,4}(\.[0-9]{1,3})?$/.test(seconds))
    return Number(seconds) * 1000;
  throw new CheckpointError('USAGE', `${JSON.stringify(seconds)} is no number of seconds`, {
    hint: 'for example --reflink-pause 5, or 0.5',
  });
}

function failed(why: string, possiblyPresent: readonly string[] = []): CheckpointError {
  return snapshotFailed(
    'reflink',
    why,
    possiblyPresent,
    'the next checkpoint of the VM removes it; rm removes it by hand',
  );
}
