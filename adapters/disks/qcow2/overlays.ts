/** Overlays on images: their names, and making one for a VM that is to be restored. */

import { chown, open, rm, stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import type { StandIn } from '../../../src/hypervisor/disk-driver.js';
import { createOverlay } from './qemu-img.js';
import type { ExternalSnapshot } from './qcow2-records.js';

/**
 * What a running VM writes to after a checkpoint. Named after the image that the chain began with: names do
 * not grow from overlay to overlay.
 */
export function overlayPathFor(path: string, checkpointId: string): string {
  const stem = basename(path, extname(path)).replace(/(\.cairn-[^.]+)+$/, '');
  return join(dirname(path), `${stem}.cairn-${checkpointId}.qcow2`);
}

/** @throws DISK_SNAPSHOT_FAILED when the file of an overlay exists already */
export async function refuseExisting(snapshots: readonly ExternalSnapshot[]): Promise<void> {
  const present = new Set<string>();
  for (const { overlayPath } of snapshots) if (await exists(overlayPath)) present.add(overlayPath);
  if (present.size === 0) return;
  throw new CheckpointError('DISK_SNAPSHOT_FAILED', `${[...present].join(', ')} exists already`, {
    hint: 'remove it if no VM uses it',
  });
}

/**
 * A new overlay, owned as the frozen image is.
 * @returns its path.
 * @throws RESTORE_FAILED with none left behind
 */
export async function putOverlayOn(frozen: string, format: string, checkpointId: string): Promise<string> {
  const overlay = await reserveOverlay(frozen, checkpointId.slice(0, 8));
  try {
    await createOverlay(overlay, frozen, format);
    await sameOwner(overlay, frozen);
    return overlay;
  } catch (error) {
    await rm(overlay, { force: true });
    throw error;
  }
}

/**
 * An overlay at a place of its own, of a machine that is forked.
 * @param path what the command line names
 * @param under what it stands on, by the format of the image at `path`
 */
export function overlayAt(
  overlay: string,
  path: string,
  under: (format: string) => { readonly base: string; readonly format: string },
): StandIn {
  return {
    path,
    create: async (ofPath) => {
      const { base, format } = under(ofPath);
      await createOverlay(overlay, base, format);
      return overlay;
    },
  };
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

/**
 * Gives the overlay to the owner of the image, for a QEMU that gives up root (-runas). Without the right to,
 * the overlay stays ours.
 */
async function sameOwner(overlay: string, path: string): Promise<void> {
  const { uid, gid } = await stat(path);
  await chown(overlay, uid, gid).catch(() => undefined);
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}
