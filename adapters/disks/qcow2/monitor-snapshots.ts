/**
 * Snapshots of qcow2 images by the monitor of the QEMU that has them open: one `transaction`, so that either
 * all disks are of the same instant or none has a snapshot. Sources: transaction, blockdev-snapshot-* of the
 * QMP reference.
 */

import { rm } from 'node:fs/promises';
import { basename } from 'node:path';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
import { imagePath } from '../../qemu/image-names.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';
import { EXTERNAL, INTERNAL, type ExternalSnapshot, type InternalSnapshot } from './qcow2-records.js';
import type { ImageSnapshots, OverlaySnapshots } from './snapshot-takers.js';

/** A snapshot of a full 400 GiB image took 2.9 s. */
const TRANSACTION_TIMEOUT_MS = 60_000;
/** Greatest length of a node name in QEMU. */
const MAX_NODE_NAME = 31;

export function monitorImages(monitor: Monitor): ImageSnapshots {
  return {
    take: (snapshots) =>
      transaction(monitor, {
        mode: INTERNAL,
        diskIds: snapshots.map(({ diskId }) => diskId),
        actions: snapshots.map(({ diskId, snapshotName }) => ({
          type: 'blockdev-snapshot-internal-sync',
          data: { device: diskId, name: snapshotName },
        })),
        names: snapshots.map(nameOf),
      }),
    drop: (snapshots) => dropInternal(monitor, snapshots),
  };
}

export function monitorOverlays(monitor: Monitor): OverlaySnapshots {
  return { take: (snapshots) => takeOverlays(monitor, snapshots) };
}

async function takeOverlays(monitor: Monitor, snapshots: readonly ExternalSnapshot[]): Promise<void> {
  const devices = asArray(await monitor.execute('query-block'));
  // -drive names the device, -blockdev the node.
  const named = new Set(devices.map(({ device }) => asText(device)));
  try {
    await transaction(monitor, {
      mode: EXTERNAL,
      diskIds: snapshots.map(({ diskId }) => diskId),
      actions: snapshots.map((snapshot) => overlayAction(snapshot, named.has(snapshot.diskId))),
      names: snapshots.map(({ overlayPath }) => `overlay ${overlayPath}`),
    });
  } catch (error) {
    // QEMU takes all members back, but leaves the files of overlays that it created.
    if (isRefusal(error)) for (const { overlayPath } of snapshots) await rm(overlayPath, { force: true });
    throw error;
  }
  await nameBackingAbsolutely(monitor, devices, snapshots);
}

/**
 * QEMU writes the name of an image into its overlay as it calls it itself. A relative one would start from the folder
 * of the overlay there, not from that of QEMU; and one made of options would name what is no option of the next QEMU.
 */
async function nameBackingAbsolutely(
  monitor: Monitor,
  before: readonly JsonObject[],
  snapshots: readonly ExternalSnapshot[],
): Promise<void> {
  const nameOfDisk = (id: string): string => {
    const found = before.find(
      ({ device, inserted }) => device === id || asObject(inserted)['node-name'] === id,
    );
    return asText(asObject(asObject(found?.inserted).image).filename);
  };
  const unclear = snapshots.filter(({ diskId }) => !nameOfDisk(diskId).startsWith('/'));
  if (unclear.length === 0) return;
  const now = asArray(await monitor.execute('query-block')).map(({ device, inserted }) => ({
    device: asText(device),
    path: imagePath(asText(asObject(asObject(inserted).image).filename)),
    node: asText(asObject(inserted)['node-name']),
  }));
  for (const { path, overlayPath } of unclear) {
    const overlay = now.find((one) => one.path === overlayPath);
    if (overlay === undefined || !path.startsWith('/')) continue;
    await monitor.execute('change-backing-file', {
      device: overlay.device === '' ? overlay.node : overlay.device,
      'image-node-name': overlay.node,
      'backing-file': path,
    });
  }
}

interface Transaction {
  readonly mode: string;
  readonly diskIds: readonly string[];
  readonly actions: readonly JsonObject[];
  /** What to look for when QEMU did not answer. */
  readonly names: readonly string[];
}

/**
 * @throws DISK_SNAPSHOT_FAILED with nothing taken when QEMU refused. Without its answer (a timeout, VM_GONE)
 *   the snapshots may be there, and the VM may already write to the overlays: `detail.possiblyPresent` names
 *   them
 */
async function transaction(monitor: Monitor, { mode, diskIds, actions, names }: Transaction): Promise<void> {
  try {
    await monitor.execute('transaction', { actions }, { timeoutMs: TRANSACTION_TIMEOUT_MS });
  } catch (error) {
    if (!isCheckpointError(error, 'QMP_COMMAND')) throw unanswered(names, error);
    throw new CheckpointError(
      'DISK_SNAPSHOT_FAILED',
      `snapshot of ${diskIds.join(', ')}: ${describeError(error)}`,
      { cause: error, detail: { disks: diskIds, mode } },
    );
  }
}

function isRefusal(error: unknown): boolean {
  return isCheckpointError(error, 'DISK_SNAPSHOT_FAILED') && error.detail.possiblyPresent === undefined;
}

function unanswered(possiblyPresent: readonly string[], cause: unknown): CheckpointError {
  return new CheckpointError(
    isCheckpointError(cause, 'VM_GONE') ? 'VM_GONE' : 'DISK_SNAPSHOT_FAILED',
    `whether the disks were snapshotted is not known: ${describeError(cause)}; look for ${possiblyPresent.join('; ')}`,
    {
      cause,
      hint: '`info block` in the monitor and `qemu-img snapshot -l` tell; remove no overlay that the VM writes to',
      detail: { possiblyPresent },
    },
  );
}

async function dropInternal(monitor: Monitor, snapshots: readonly InternalSnapshot[]): Promise<void> {
  const left: string[] = [];
  for (const snapshot of snapshots) {
    try {
      await monitor.execute(
        'blockdev-snapshot-delete-internal-sync',
        { device: snapshot.diskId, name: snapshot.snapshotName },
        { timeoutMs: TRANSACTION_TIMEOUT_MS },
      );
    } catch (error) {
      left.push(`${nameOf(snapshot)} (${describeError(error)})`);
    }
  }
  if (left.length === 0) return;
  throw new CheckpointError('DISK_SNAPSHOT_FAILED', `snapshots that stay: ${left.join('; ')}`, {
    hint: 'qemu-img snapshot -d removes a snapshot of a stopped VM',
  });
}

function nameOf({ snapshotName, path }: InternalSnapshot): string {
  return `snapshot ${snapshotName} in ${path}`;
}

function overlayAction({ diskId, overlayPath }: ExternalSnapshot, isDevice: boolean): JsonObject {
  const target: JsonObject = isDevice
    ? { device: diskId }
    : { 'node-name': diskId, 'snapshot-node-name': overlayNode(overlayPath) };
  return {
    type: 'blockdev-snapshot-sync',
    data: { ...target, 'snapshot-file': overlayPath, format: 'qcow2', mode: 'absolute-paths' },
  };
}

/**
 * A node name that differs from overlay to overlay: the end of the file's name, which holds the checkpoint's
 * id.
 */
function overlayNode(overlayPath: string): string {
  const readable = basename(overlayPath, '.qcow2').replace(/[^A-Za-z0-9_-]/g, '-');
  return `c${readable.slice(-(MAX_NODE_NAME - 1))}`;
}
