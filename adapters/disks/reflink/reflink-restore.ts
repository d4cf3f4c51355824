/**
 * Putting images back to the clones of a checkpoint.
 *
 * The clone is cloned into the image, which stays the same file: QEMU has it open already when all memory has
 * been read, owner, mode and labels are kept, and so are hard links. The clone stays. What the image was before
 * is cloned first. A restore that is killed in the middle leaves that clone, and the image half way; the same
 * restore, taken again, finishes it.
 */

import { open, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import { checkFrozenLayers } from '../qcow2/frozen-layers.js';
import { bitmapsText, withBitmapsAside } from '../qcow2/bitmaps.js';
import { imageInfo } from '../qcow2/qemu-img.js';
import { BEFORE } from '../rolled-back.js';
import { quoted } from '../shell-quote.js';
import { diskLost } from '../snapshot-errors.js';
import { stillOpen } from '../still-open.js';
import { cloneExtents, copyNoCow, giveName, isOpenForWriting, openUnnamed } from './file-calls.js';
import type { CloneSnapshot } from './reflink-record.js';

/** A QEMU that was killed keeps its images until the last of its threads has ended. */
const CLOSING_WAIT_MS = 5000;

/**
 * Whether all can be put back, before anything is touched.
 * @throws RESTORE_FAILED when a clone or an image is gone, DISK_CHANGED when a clone or what lies below it
 *   was written to, or when the image has later snapshots inside, RESTORE_TARGET_BUSY when somebody has an
 *   image open for writing
 */
export async function checkClones(
  snapshots: readonly CloneSnapshot[],
  waitMs = CLOSING_WAIT_MS,
): Promise<void> {
  for (const { imagePath, clonePath } of snapshots) {
    const [image, clone] = [await deviceOf(imagePath), await deviceOf(clonePath)];
    if (clone === undefined) throw diskLost(`the clone ${clonePath} of the disk ${imagePath} is gone`);
    if (image !== clone)
      throw diskLost(
        `the image ${imagePath} is ${image === undefined ? 'gone' : 'on another file system than its clone'}`,
        `copy the clone there (cp --reflink=always ${quoted(clonePath)} ${quoted(imagePath)}), and restore again`,
      );
  }
  await checkFrozenLayers(snapshots.map((snapshot) => ({ ...snapshot, overlayPath: '' })));
  const busy = await stillOpen(() => openAmong(snapshots), waitMs);
  if (busy !== undefined) {
    throw new CheckpointError('RESTORE_TARGET_BUSY', `somebody has the image ${busy} open for writing`, {
      hint: 'stop the VM or the program that uses it first (`fuser -v` names it, `losetup -j` a loop device)',
      detail: { path: busy },
    });
  }
  for (const snapshot of snapshots) await refuseLaterSnapshots(snapshot);
}

/** Clones images as they are now to `clonePath`. @throws RESTORE_FAILED with none left behind */
export async function keepClones(snapshots: readonly CloneSnapshot[]): Promise<void> {
  const named: string[] = [];
  for (const { imagePath, clonePath } of snapshots) {
    try {
      await cloneTo(imagePath, clonePath);
      named.push(clonePath);
    } catch (cause) {
      for (const path of named) await rm(path, { force: true });
      throw new CheckpointError(
        'RESTORE_FAILED',
        `keeping what ${imagePath} is before it is put back: ${describeError(cause)}`,
        { cause, hint: 'nothing was touched: is there room on its file system?' },
      );
    }
  }
}

async function cloneTo(imagePath: string, clonePath: string): Promise<void> {
  const image = await open(imagePath, 'r');
  try {
    const clone = await openUnnamed(dirname(clonePath));
    try {
      copyNoCow(image, clone);
      await cloneExtents(image, clone);
      await giveName(clone, clonePath);
    } finally {
      await clone.close();
    }
  } finally {
    await image.close();
  }
}

/** What a rollback does to the dirty bitmaps that the clones hold. */
export async function bitmapsOfClones(snapshots: readonly CloneSnapshot[]): Promise<readonly string[]> {
  const texts: string[] = [];
  for (const { imagePath, clonePath, format } of snapshots) {
    if (format !== 'qcow2') continue;
    const { bitmaps } = await imageInfo(clonePath, format);
    if (bitmaps.length > 0) texts.push(bitmapsText(imagePath, bitmaps));
  }
  return texts;
}

/** @throws RESTORE_FAILED, possibly in the middle */
export async function rollBackClones(snapshots: readonly CloneSnapshot[]): Promise<void> {
  for (const snapshot of snapshots) {
    const { imagePath, clonePath } = snapshot;
    try {
      await rollBack(imagePath, clonePath);
      await markChanged(snapshot);
    } catch (cause) {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `putting ${imagePath} back to ${clonePath}: ${describeError(cause)}`,
        { cause },
      );
    }
  }
}

async function rollBack(imagePath: string, clonePath: string): Promise<void> {
  const clone = await open(clonePath, 'r');
  try {
    const image = await open(imagePath, 'r+');
    try {
      await cloneExtents(clone, image);
      // What the image has grown by since.
      await image.truncate((await clone.stat()).size);
      await image.sync();
    } finally {
      await image.close();
    }
  } finally {
    await clone.close();
  }
}

/**
 * Dirty bitmaps came with the clone, and a backup may have been taken since: everything counts as changed. In what an
 * image was before a restore they are right as they are.
 */
async function markChanged({ imagePath, clonePath, format }: CloneSnapshot): Promise<void> {
  if (format !== 'qcow2' || clonePath.startsWith(`${imagePath}.cairn-${BEFORE}`)) return;
  await withBitmapsAside(imagePath, await imageInfo(imagePath, format), () => Promise.resolve());
}

/** Snapshots inside of the image would be gone with it; other checkpoints may need them. */
async function refuseLaterSnapshots({ imagePath, clonePath, format }: CloneSnapshot): Promise<void> {
  if (format !== 'qcow2') return;
  const kept = (await imageInfo(clonePath, format)).snapshotNames;
  const lost = (await imageInfo(imagePath, format)).snapshotNames.filter((name) => !kept.includes(name));
  if (lost.length === 0) return;
  throw new CheckpointError(
    'DISK_CHANGED',
    `putting ${imagePath} back to its clone would destroy later snapshots inside of it: ${lost.join(', ')}`,
    {
      hint: `restore with another file as disk and --keep-disks (cp --reflink=always ${quoted(clonePath)} NEW), or remove those snapshots first`,
      detail: { path: imagePath, snapshots: lost },
    },
  );
}

async function openAmong(snapshots: readonly CloneSnapshot[]): Promise<string | undefined> {
  for (const { imagePath } of snapshots) {
    const image = await open(imagePath, 'r');
    try {
      if (isOpenForWriting(image)) return imagePath;
    } finally {
      await image.close();
    }
  }
  return undefined;
}

/** Undefined when there is no file. */
async function deviceOf(path: string): Promise<number | undefined> {
  try {
    const found = await stat(path);
    return found.isFile() ? found.dev : undefined;
  } catch (error) {
    if (systemErrorCode(error) === undefined) throw error;
    return undefined;
  }
}
