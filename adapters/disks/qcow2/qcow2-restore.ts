/**
 * The disks of a checkpoint, for a restore.
 *
 * Internal snapshots, logical volumes, images of Ceph: each is looked at before anything starts, but rolled back only when all memory has been read
 * and verified. The new QEMU has the images open by then, inactive as in any incoming migration: it holds no locks against
 * it, and reads their metadata anew when the stream ends. So a damaged repository leaves the disks untouched.
 *
 * External snapshots: the frozen image is never written. A new qcow2 overlay `<frozen>.cairn-restore-<id>.qcow2` stands on
 * it and takes the place of the disk in the command line. That disk is found by path; where the frozen image is itself
 * an overlay of an earlier checkpoint, by the path of the image it goes back to.
 */

import { chown, open, readFile, realpath, rm, stat } from 'node:fs/promises';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { checkFrozenLayers } from '../frozen-layers.js';
import { checkVolumes, writeBackVolumes } from '../lvm/lvm-restore.js';
import { checkImages, rollBackImages } from '../rbd/rbd-restore.js';
import type { QemuOption } from './command-line.js';
import { diskReferences, type DiskReference } from './restore-disk-options.js';
import { applySnapshot, createOverlay, imageInfo } from './qemu-img.js';

/**
 * Whether the disks of the checkpoint can still be had, before anything is touched.
 * @throws RESTORE_FAILED when a snapshot is gone, DISK_CHANGED when a frozen image was written to, RESTORE_TARGET_BUSY when
 *   somebody has an image open for writing
 */
export async function checkSnapshots(disks: readonly DiskSnapshot[]): Promise<void> {
  await checkFrozenLayers(disks);
  for (const { path, frozen } of external(disks)) {
    // A commit into it that has just begun shows in the lock before it shows in the file.
    for (const layer of frozen?.map((one) => one.path) ?? [path]) await refuseOpenForWriting(layer);
  }
  await checkInternalSnapshots(disks);
  await checkVolumes(disks);
  await checkImages(disks);
}

async function checkInternalSnapshots(disks: readonly DiskSnapshot[]): Promise<void> {
  for (const { path, snapshotName } of internal(disks)) {
    const { snapshotNames } = await imageInfo(path, 'qcow2');
    if (!snapshotNames.includes(snapshotName)) {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `the disk ${path} has no snapshot ${snapshotName} any more`,
        {
          hint: '--keep-disks restores memory and devices alone, which is only right with disks of the same instant',
        },
      );
    }
    await refuseOpenForWriting(path);
  }
}

async function refuseOpenForWriting(path: string): Promise<void> {
  if (!(await isOpenForWriting(path))) return;
  throw new CheckpointError('RESTORE_TARGET_BUSY', `a running QEMU has the disk ${path} open for writing`, {
    hint: 'stop the VM or the job that writes to this disk first',
    detail: { path },
  });
}

/** Puts back what is put back in place: internal snapshots, logical volumes and images of Ceph. */
export async function rollBack(disks: readonly DiskSnapshot[]): Promise<void> {
  await writeBackVolumes(disks);
  await rollBackImages(disks);
  for (const { path, snapshotName } of internal(disks)) await applySnapshot(path, snapshotName);
}

export interface OverlaidDisks {
  readonly options: readonly QemuOption[];
  /** The images created; to be removed when the restore fails. */
  readonly overlays: readonly string[];
}

/** @throws RESTORE_FAILED, VM_UNSUPPORTED, with no overlay left behind */
export async function overlayExternal(
  disks: readonly DiskSnapshot[],
  options: readonly QemuOption[],
  cwd: string,
  checkpointId: string,
): Promise<OverlaidDisks> {
  let changed = options;
  const overlays: string[] = [];
  try {
    for (const { path } of external(disks)) {
      const found = await findReference(path, diskReferences(changed, cwd));
      const overlay = await putOverlayOn(path, found.format, checkpointId);
      overlays.push(overlay);
      changed = found.reference.replace(changed, overlay);
    }
  } catch (error) {
    await removeOverlays(overlays);
    throw error;
  }
  return { options: changed, overlays };
}

/** A new overlay, owned as the frozen image is. @returns its path. @throws RESTORE_FAILED with none left behind */
export async function putOverlayOn(frozen: string, format: string, checkpointId: string): Promise<string> {
  const overlay = await reserveOverlay(frozen, checkpointId.slice(0, 8));
  try {
    await createOverlay(overlay, frozen, format);
    await sameOwner(overlay, frozen);
    return overlay;
  } catch (error) {
    await removeOverlays([overlay]);
    throw error;
  }
}

export async function removeOverlays(overlays: readonly string[]): Promise<void> {
  for (const overlay of overlays) await rm(overlay, { force: true });
}

function internal(disks: readonly DiskSnapshot[]): readonly DiskSnapshot[] {
  return disks.filter(({ mode }) => mode === 'internal');
}

export function external(disks: readonly DiskSnapshot[]): readonly DiskSnapshot[] {
  return disks.filter(({ mode }) => mode === 'external');
}

/** @returns the reference, and the format of the image at `frozen` */
async function findReference(
  frozen: string,
  references: readonly DiskReference[],
): Promise<{ readonly reference: DiskReference; readonly format: string }> {
  // An image that the command line does not name was made by a snapshot, which makes qcow2: no guessing from content.
  for (let path: string | undefined = frozen, depth = 0; path !== undefined && depth < 256; depth++) {
    const reference = await referenceTo(path, references);
    if (reference !== undefined) {
      const format = path === frozen ? (reference.format ?? (await imageInfo(frozen)).format) : 'qcow2';
      return { reference, format };
    }
    path = (await imageInfo(path, 'qcow2')).backingPath;
  }
  throw new CheckpointError(
    'RESTORE_FAILED',
    `the recorded command line names no disk that ${frozen} belongs to`,
    {
      hint: 'put an overlay on it yourself, name it with --set-arg, and pass --keep-disks',
      detail: { path: frozen },
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

/** A name that nobody has; qemu-img would overwrite a file without a word. */
async function reserveOverlay(path: string, id: string): Promise<string> {
  for (let n = 1; ; n++) {
    const overlay = `${path}.cairn-restore-${id}${n === 1 ? '' : `-${n}`}.qcow2`;
    try {
      await (await open(overlay, 'wx', 0o600)).close();
      return overlay;
    } catch (cause) {
      if (systemErrorCode(cause) === 'EEXIST') continue;
      throw new CheckpointError('RESTORE_FAILED', `cannot create ${overlay}`, { cause });
    }
  }
}

/** For a QEMU that gives up root (-runas). Without the right to, the overlay stays ours. */
async function sameOwner(overlay: string, path: string): Promise<void> {
  const { uid, gid } = await stat(path);
  await chown(overlay, uid, gid).catch(() => undefined);
}

/**
 * QEMU locks byte 100+n of an image for each permission that it uses and 200+n for each that it does not share; n = 1 is
 * writing (block/file-posix.c). /proc/locks: `1: OFDLCK ADVISORY READ -1 fe:00:4711 201 201`.
 */
const WRITE_LOCK_BYTES = new Set(['101', '201']);

async function isOpenForWriting(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  // Whoever needs the image finds out that it is gone.
  if (found === undefined) return false;
  const { dev, ino } = found;
  const major = ((dev >>> 8) & 0xfff).toString(16).padStart(2, '0');
  const minor = ((dev & 0xff) | ((dev >>> 12) & 0xfff00)).toString(16).padStart(2, '0');
  const lines = (await readFile('/proc/locks', 'utf8').catch(() => '')).split('\n');
  return lines.some((line) => {
    const fields = line.trim().split(/\s+/);
    return fields.includes(`${major}:${minor}:${ino}`) && WRITE_LOCK_BYTES.has(fields.at(-2) ?? '');
  });
}
