/**
 * The files that an external snapshot freezes: the image at the checkpoint and everything below it. Nobody
 * may write to them while a checkpoint needs them, and nothing keeps an operator from it: `qemu-img commit`,
 * `virsh blockcommit` and `qemu-img rebase` do. A restore would then start from disks of another time without
 * a sign of it.
 *
 * What tells is size and time of the last write. Not the inode: a copy that keeps its times (`cp -p`, `rsync
 * -a`) holds the same. Not the time of the last change of the inode: libvirt gives images another owner
 * whenever a domain starts or stops. Whoever only reads the image (QEMU as the backing of an overlay,
 * `qemu-img info`, a restore) changes neither.
 */

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import type { VmDisk } from '../../../src/hypervisor/disks.js';
import { isLocalPath } from '../../qemu/image-names.js';
import type { ExternalSnapshot, FrozenLayer } from './qcow2-records.js';

/**
 * The same snapshots with their frozen layers. Right after they were taken: what they froze is not written to
 * from then on. Layers that are no files of this host (block devices, network) are left out: nothing here
 * tells whether they changed. So are those that cannot be looked at, with a warning: in a pause that must not fail the
 * checkpoint.
 * @param disks as they were before the snapshot
 * @param cwd what relative paths of the hypervisor start from
 */
export function withFrozenLayers(
  snapshots: readonly ExternalSnapshot[],
  disks: readonly VmDisk[],
  cwd: string,
): Promise<readonly ExternalSnapshot[]> {
  return Promise.all(
    snapshots.map(async (snapshot) => {
      const below = disks.find(({ id }) => id === snapshot.diskId)?.backingPaths ?? [];
      const paths = [snapshot.path, ...below].filter(isLocalPath);
      const layers = await Promise.all(
        paths.map((path) => layerAt(resolve(cwd, path), (error) => warnOf(path, error))),
      );
      return { ...snapshot, frozen: layers.filter((layer) => layer !== undefined) };
    }),
  );
}

/**
 * @throws DISK_CHANGED when a frozen file was written to or is gone. Checkpoints that did not record them
 *   pass.
 */
export async function checkFrozenLayers(snapshots: readonly ExternalSnapshot[]): Promise<void> {
  for (const { diskId, frozen = [] } of snapshots) {
    for (const layer of frozen) await checkLayer(diskId, layer);
  }
}

async function checkLayer(diskId: string, layer: FrozenLayer): Promise<void> {
  const now = await layerAt(layer.path);
  if (now?.sizeBytes === layer.sizeBytes && now.mtimeNs === layer.mtimeNs) return;
  const what =
    now === undefined
      ? 'is gone'
      : `was written to at ${timeOf(now)}, after the checkpoint (${timeOf(layer)})`;
  throw new CheckpointError(
    'DISK_CHANGED',
    `the image ${layer.path}, frozen by the checkpoint for its disk ${diskId}, ${what}`,
    {
      hint:
        'a blockcommit, qemu-img commit or rebase does that: put the image back as it was (from a backup, with its times), or ' +
        'restore memory and devices alone with --keep-disks, which is only right with disks of the same instant',
      detail: { path: layer.path, disk: diskId },
    },
  );
}

/**
 * Undefined when there is no file, or it cannot be looked at.
 * @param onFailure hears why it cannot
 */
async function layerAt(
  path: string,
  onFailure: (error: unknown) => void = () => undefined,
): Promise<FrozenLayer | undefined> {
  return lookAt(path).catch((error: unknown) => {
    if (systemErrorCode(error) === undefined) throw error;
    onFailure(error);
    return undefined;
  });
}

function warnOf(path: string, error: unknown): void {
  process.emitWarning(
    `${path} is frozen by this checkpoint and cannot be looked at (${describeError(error)}): no restore will notice when it was written to`,
  );
}

/** Undefined for what is no file. */
async function lookAt(path: string): Promise<FrozenLayer | undefined> {
  const found = await stat(path, { bigint: true });
  return found.isFile() ? { path, sizeBytes: Number(found.size), mtimeNs: String(found.mtimeNs) } : undefined;
}

function timeOf({ mtimeNs }: FrozenLayer): string {
  return new Date(Number(BigInt(mtimeNs) / 1_000_000n)).toISOString();
}
