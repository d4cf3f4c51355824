/**
 * New images in the place of those that a checkpoint must not have written to, in the command line of the
 * restored VM. A disk is found by path; where its image is itself an overlay of an earlier checkpoint, by the
 * path of the image it goes back to.
 */

import { realpath } from 'node:fs/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { StandIn } from '../../../src/hypervisor/disk-driver.js';
import { removeStandIns } from '../../disks/disk-drivers.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { imageInfo } from '../../disks/qcow2/qemu-img.js';
import { diskReferences, type DiskReference } from '../../disks/qcow2/restore-disk-options.js';

export interface StoodIn {
  readonly options: readonly QemuOption[];
  /** The images created; to be removed when the restore fails. */
  readonly created: readonly string[];
  /** The same by what each stands for: the absolute path of an image that must stay as it is. */
  readonly instead: ReadonlyMap<string, string>;
}

/** @throws RESTORE_FAILED, VM_UNSUPPORTED, with no image left behind */
export async function withStandIns(
  standIns: readonly StandIn[],
  options: readonly QemuOption[],
  cwd: string,
): Promise<StoodIn> {
  let changed = options;
  const created: string[] = [];
  const instead = new Map<string, string>();
  try {
    for (const standIn of standIns) {
      const { reference, format } = await findReference(standIn.path, diskReferences(changed, cwd));
      const image = await standIn.create(format);
      created.push(image);
      instead.set(standIn.path, image);
      changed = reference.replace(changed, image, standIn.format);
    }
  } catch (error) {
    await removeStandIns(created);
    throw error;
  }
  return { options: changed, created, instead };
}

/** @returns the reference, and the format of the image at `path` */
async function findReference(
  image: string,
  references: readonly DiskReference[],
): Promise<{ readonly reference: DiskReference; readonly format: string }> {
  // An image that the command line does not name was made by a snapshot, which makes qcow2: no guessing from
  // content.
  for (let path: string | undefined = image, depth = 0; path !== undefined && depth < 256; depth++) {
    const reference = await referenceTo(path, references);
    if (reference !== undefined) {
      const format = path === image ? (reference.format ?? (await imageInfo(image)).format) : 'qcow2';
      return { reference, format };
    }
    path = (await imageInfo(path, 'qcow2')).backingPath;
  }
  throw new CheckpointError(
    'RESTORE_FAILED',
    `the recorded command line names no disk that ${image} belongs to`,
    {
      hint: 'put an overlay on it yourself, name it with --set-arg, and pass --keep-disks',
      detail: { path: image },
    },
  );
}

async function referenceTo(
  path: string,
  references: readonly DiskReference[],
): Promise<DiskReference | undefined> {
  const wanted = await realOrSame(path);
  for (const reference of references) {
    if (reference.path === path || (await realOrSame(reference.path)) === wanted) return reference;
  }
  return undefined;
}

async function realOrSame(path: string): Promise<string> {
  return realpath(path).catch(() => path);
}
