/**
 * The disks of a QEMU and their snapshots in the pause: one `transaction`, so that either all disks are of the same instant or
 * none has a snapshot. Sources: query-block, query-named-block-nodes, transaction, blockdev-snapshot-* of the QMP reference.
 */

import { rm, stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import type { DiskSnapshot, DiskSnapshotMode, VmDisk } from '../../../src/hypervisor/disks.js';
import type { Json, JsonObject } from '../../../src/types.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asNumber, asObject, asText } from '../../qemu/qmp-json.js';

/** A snapshot of a full 400 GiB image took 2.9 s. */
const TRANSACTION_TIMEOUT_MS = 60_000;
/** Of node names in QEMU. */
const MAX_NODE_NAME = 31;

/** Disks with a medium, in the order in which QEMU lists them. @throws VM_GONE */
export async function listDisks(monitor: Monitor): Promise<readonly VmDisk[]> {
  return disksOf(await monitor.execute('query-block'));
}

/** The reply of query-block as disks. */
export function disksOf(reply: Json): readonly VmDisk[] {
  return asArray(reply).flatMap((device) => {
    const inserted = asObject(device.inserted);
    const image = asObject(inserted.image);
    // -drive names the device, -blockdev the node.
    const id = asText(device.device) || asText(inserted['node-name']);
    if (id === '' || inserted.drv === undefined) return [];
    const format = asText(inserted.drv);
    const writable = inserted.ro !== true;
    return {
      id,
      path: asText(image.filename) || asText(inserted.file),
      format,
      writable,
      virtualSizeBytes: asNumber(image['virtual-size']),
      snapshotModes: format === 'qcow2' && writable ? (['internal', 'external'] as const) : [],
      backingPaths: backingPathsOf(image),
    };
  });
}

/** ImageInfo of qapi/block-core.json: each image holds the one below it. */
function backingPathsOf(image: JsonObject): readonly string[] {
  const paths: string[] = [];
  for (
    let below = asObject(image['backing-image']);
    below.filename !== undefined;
    below = asObject(below['backing-image'])
  ) {
    paths.push(asText(below.filename));
  }
  return paths;
}

/** What the snapshots will be called. @throws DISK_SNAPSHOT_FAILED when the file of an overlay exists already */
export async function planDiskSnapshots(
  disks: readonly VmDisk[],
  name: string,
  mode: DiskSnapshotMode,
): Promise<readonly DiskSnapshot[]> {
  const snapshots = disks.map((disk) => plan(disk, name, mode));
  const present = new Set<string>();
  for (const { overlayPath } of snapshots) {
    if (overlayPath !== '' && (await exists(overlayPath))) present.add(overlayPath);
  }
  if (present.size === 0) return snapshots;
  throw new CheckpointError('DISK_SNAPSHOT_FAILED', `${[...present].join(', ')} exists already`, {
    hint: 'remove it if no VM uses it',
  });
}

/**
 * @throws DISK_SNAPSHOT_FAILED with nothing left behind when QEMU refused. Without its answer (a timeout, VM_GONE) the snapshots
 *   may be there, and the VM may already write to the overlays: nothing is removed, and `detail.possiblyPresent` names them
 */
export async function snapshotDisks(
  monitor: Monitor,
  name: string,
  disks: readonly VmDisk[],
  mode: DiskSnapshotMode,
): Promise<readonly DiskSnapshot[]> {
  const snapshots = await planDiskSnapshots(disks, name, mode);
  const named = await blockDeviceNames(monitor);
  const actions = snapshots.map((snapshot) => action(snapshot, named.has(snapshot.diskId)));
  try {
    await monitor.execute('transaction', { actions }, { timeoutMs: TRANSACTION_TIMEOUT_MS });
    return snapshots;
  } catch (error) {
    if (!isCheckpointError(error, 'QMP_COMMAND')) throw unanswered(snapshots, error);
    // QEMU takes all members back, but leaves the files of overlays that it created.
    for (const { overlayPath } of snapshots) if (overlayPath !== '') await rm(overlayPath, { force: true });
    throw new CheckpointError(
      'DISK_SNAPSHOT_FAILED',
      `snapshot of ${disks.map((disk) => disk.id).join(', ')}: ${describeError(error)}`,
      {
        cause: error,
        detail: { disks: disks.map((disk) => disk.id), mode },
      },
    );
  }
}

function unanswered(snapshots: readonly DiskSnapshot[], cause: unknown): CheckpointError {
  const possiblyPresent = snapshots.map(nameOf);
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

function nameOf({ mode, overlayPath, snapshotName, path }: DiskSnapshot): string {
  return mode === 'external' ? `overlay ${overlayPath}` : `snapshot ${snapshotName} in ${path}`;
}

/**
 * Deletes internal snapshots. Overlays stay: the VM writes to them, and merging them is a long copy that the operator
 * starts. @throws DISK_SNAPSHOT_FAILED naming what stays behind
 */
export async function dropDiskSnapshots(monitor: Monitor, snapshots: readonly DiskSnapshot[]): Promise<void> {
  const left: string[] = [];
  for (const snapshot of snapshots) {
    if (snapshot.mode === 'external') {
      left.push(nameOf(snapshot));
      continue;
    }
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
    hint: 'qemu-img snapshot -d removes a snapshot of a stopped VM; block-commit merges an overlay of a running one',
  });
}

function plan(disk: VmDisk, name: string, mode: DiskSnapshotMode): DiskSnapshot {
  const snapshotName = `cairn-${name}`;
  const { id: diskId, path } = disk;
  if (mode === 'internal') return { diskId, path, mode, snapshotName, overlayPath: '' };
  // Of the image that the chain began with: names do not grow from overlay to overlay.
  const stem = basename(path, extname(path)).replace(/(\.cairn-[^.]+)+$/, '');
  const overlayPath = join(dirname(path), `${stem}.${snapshotName}.qcow2`);
  return { diskId, path, mode, snapshotName: '', overlayPath };
}

function action(snapshot: DiskSnapshot, isDevice: boolean): JsonObject {
  if (snapshot.mode === 'internal') {
    return {
      type: 'blockdev-snapshot-internal-sync',
      data: { device: snapshot.diskId, name: snapshot.snapshotName },
    };
  }
  const target: JsonObject = isDevice
    ? { device: snapshot.diskId }
    : { 'node-name': snapshot.diskId, 'snapshot-node-name': overlayNode(snapshot.overlayPath) };
  return {
    type: 'blockdev-snapshot-sync',
    data: { ...target, 'snapshot-file': snapshot.overlayPath, format: 'qcow2', mode: 'absolute-paths' },
  };
}

/** A node name that differs from overlay to overlay: the end of the file's name, which holds the checkpoint's id. */
function overlayNode(overlayPath: string): string {
  const readable = basename(overlayPath, '.qcow2').replace(/[^A-Za-z0-9_-]/g, '-');
  return `c${readable.slice(-(MAX_NODE_NAME - 1))}`;
}

async function blockDeviceNames(monitor: Monitor): Promise<ReadonlySet<string>> {
  return new Set(asArray(await monitor.execute('query-block')).map((device) => asText(device.device)));
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}
