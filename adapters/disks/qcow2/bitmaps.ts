/**
 * Persistent dirty bitmaps in an image that is put back. A backup tool (virtnbdbackup, qmpbackup, libvirt's checkpoints)
 * keeps in them what has changed since its last backup, and copies only that the next time. An image that went back holds
 * other data than the bitmap knows of; QEMU refuses to put back an image that has one, for that reason.
 *
 *     aside:  bitmaps removed  ->  image put back  ->  bitmaps added again, with everything marked as changed
 *
 * A bitmap with everything marked is right whatever the image holds: the next incremental backup copies all of it. One
 * that is put back as it was before a restore that failed gets its own marks again.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { CheckpointError, describeError } from '../../../src/errors.js';
import { failureOf, runProgram } from '../../../src/host/run-program.js';
import { addBitmap, createScratchImage, removeBitmap, type ImageBitmap, type ImageInfo } from './qemu-img.js';

/** Writing zeroes into an empty image writes its metadata alone: 2 s for 4 TiB. */
const MARK_LIMIT_MS = 10 * 60_000;

/** Bitmaps of an image as they are, kept outside of it. */
export interface KeptBitmaps {
  readonly path: string;
  readonly names: ReadonlySet<string>;
  remove(): Promise<void>;
}

/** What an operator has to know of an image with bitmaps, before it is put back. */
export function bitmapsText(path: string, bitmaps: readonly ImageBitmap[]): string {
  const names = bitmaps.map(({ name }) => name).join(', ');
  return `the image ${path} has dirty bitmaps of a backup tool (${names}): everything is marked as changed in them, so the next incremental backup copies the whole disk`;
}

/**
 * Keeps what the bitmaps of an image say. One that is not to be relied on has nothing to keep.
 * @throws RESTORE_FAILED with nothing left behind
 */
export async function keepBitmaps(path: string, info: ImageInfo): Promise<KeptBitmaps> {
  const kept = info.bitmaps.filter(({ isInconsistent }) => !isInconsistent);
  const scratch = await Scratch.make(info.virtualSizeBytes);
  try {
    for (const bitmap of kept) await addBitmap(scratch.path, { ...bitmap, isRecording: false }, path);
    return {
      path: scratch.path,
      names: new Set(kept.map(({ name }) => name)),
      remove: () => scratch.remove(),
    };
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

/**
 * Does `work` while the image has no bitmaps; it has them again afterwards, also when `work` fails. All blocks are marked
 * in them, or the marks of `kept`.
 * @throws what `work` throws; RESTORE_FAILED
 */
export async function withBitmapsAside(
  path: string,
  { bitmaps, virtualSizeBytes }: Pick<ImageInfo, 'bitmaps' | 'virtualSizeBytes'>,
  work: () => Promise<void>,
  kept?: KeptBitmaps,
): Promise<void> {
  if (bitmaps.length === 0) return work();
  const marked = await allMarked(virtualSizeBytes, bitmaps);
  const removed: ImageBitmap[] = [];
  try {
    for (const bitmap of bitmaps) {
      await removeBitmap(path, bitmap.name);
      removed.push(bitmap);
    }
    await work();
  } finally {
    for (const bitmap of removed) {
      const from = kept?.names.has(bitmap.name) === true ? kept.path : marked.path;
      // A bitmap that is not there says nothing wrong: the backup tool begins anew.
      await addBitmap(path, bitmap, from).catch((error: unknown) =>
        process.emitWarning(`the next backup of ${path} has to be a full one: ${describeError(error)}`),
      );
    }
    await marked.remove();
  }
}

/** An image of that size with the same bitmaps, in which everything is marked. @throws RESTORE_FAILED */
async function allMarked(virtualSizeBytes: number, bitmaps: readonly ImageBitmap[]): Promise<Scratch> {
  const scratch = await Scratch.make(virtualSizeBytes);
  try {
    for (const bitmap of bitmaps) await addBitmap(scratch.path, { ...bitmap, isRecording: true });
    // -n: without it qemu-io takes no more than 2 GiB at once.
    const write = ['-f', 'qcow2', '-c', `write -z -n 0 ${virtualSizeBytes}`, scratch.path];
    const failure = failureOf(
      'qemu-io',
      await runProgram('qemu-io', write, { limitMs: MARK_LIMIT_MS }),
      'qemu-utils',
    );
    if (failure !== '')
      throw new CheckpointError(
        'RESTORE_FAILED',
        `marking everything as changed in dirty bitmaps: ${failure}`,
      );
    return scratch;
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

class Scratch {
  readonly path: string;
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
    this.path = join(folder, 'bitmaps.qcow2');
  }

  static async make(virtualSizeBytes: number): Promise<Scratch> {
    const scratch = new Scratch(await mkdtemp(join(tmpdir(), 'cairn-bitmaps-')));
    try {
      await createScratchImage(scratch.path, virtualSizeBytes);
      return scratch;
    } catch (error) {
      await scratch.remove();
      throw error;
    }
  }

  remove(): Promise<void> {
    return rm(this.#folder, { recursive: true, force: true });
  }
}
