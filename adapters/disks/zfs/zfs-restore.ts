/**
 * Putting ZFS volumes back to the snapshots of a checkpoint, by `zfs rollback`. ZFS goes back to the newest
 * snapshot alone: with an older one it would destroy all that follow, and with them the disks of later
 * checkpoints. Such a restore is refused.
 */

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { RunTool } from '../run-tool.js';
import { quoted } from '../shell-quote.js';
import { diskLost } from '../snapshot-errors.js';
import { stillOpen } from '../still-open.js';
import { snapshotsOf, volumeOf, zfsFailure, type Answer } from './zfs-command.js';
import { fullNameOf, type ZvolSnapshot } from './zfs-record.js';
import { forgetCachedPages, userOf } from './zvol-device.js';

/** A QEMU that was killed keeps its disks until the last of its threads has ended. */
const CLOSING_WAIT_MS = 5000;
/** `zfs rollback` waits for a transaction group to be written. */
const ROLLBACK_LIMIT_MS = 10 * 60_000;

export interface ZvolDevices {
  /** Says in words who has the device open; undefined when nobody has. */
  userOf(path: string): Promise<string | undefined>;
  forgetCachedPages(path: string): Promise<void>;
}

export const ZVOL_DEVICES: ZvolDevices = { userOf, forgetCachedPages };

/**
 * Whether all can be put back, before anything is touched.
 * @throws RESTORE_FAILED when a volume or snapshot is gone, DISK_CHANGED when there are later snapshots,
 *   RESTORE_TARGET_BUSY when somebody has the volume open
 */
export async function checkZvols(
  snapshots: readonly ZvolSnapshot[],
  run: RunTool,
  devices: ZvolDevices = ZVOL_DEVICES,
  waitMs = CLOSING_WAIT_MS,
): Promise<void> {
  for (const snapshot of snapshots) await checkSnapshot(snapshot, run);
  const busy = await stillOpen(async () => {
    for (const { path, volume } of snapshots) {
      const user = await devices.userOf(path);
      if (user !== undefined) return { path, volume, user };
    }
    return undefined;
  }, waitMs);
  if (busy === undefined) return;
  throw new CheckpointError('RESTORE_TARGET_BUSY', `the ZFS volume ${busy.volume} is open: by ${busy.user}`, {
    hint: 'stop whoever uses it first',
    detail: { path: busy.path },
  });
}

/** @throws RESTORE_FAILED, possibly in the middle */
export async function rollBackZvols(
  snapshots: readonly ZvolSnapshot[],
  run: RunTool,
  devices: ZvolDevices = ZVOL_DEVICES,
): Promise<void> {
  for (const snapshot of snapshots) {
    const name = fullNameOf(snapshot);
    const failure = zfsFailure('rollback', await run('zfs', ['rollback', name], ROLLBACK_LIMIT_MS));
    if (failure !== '')
      throw new CheckpointError('RESTORE_FAILED', `putting the volume back to ${name}: ${failure}`);
    await devices.forgetCachedPages(snapshot.path).catch((cause: unknown) => {
      throw new CheckpointError('RESTORE_FAILED', `reading ${snapshot.path} anew: ${describeError(cause)}`, {
        cause,
      });
    });
  }
}

async function checkSnapshot(snapshot: ZvolSnapshot, run: RunTool): Promise<void> {
  const { volume, guid } = snapshot;
  if (valueOf(await volumeOf(run, volume)).guid !== guid)
    throw diskLost(`the ZFS volume ${volume} is another one than that of the checkpoint`);
  const all = valueOf(await snapshotsOf(run, volume));
  const name = fullNameOf(snapshot);
  const found = all.find((one) => one.name === name);
  if (found === undefined)
    throw diskLost(`the ZFS volume ${volume} has no snapshot ${snapshot.snapshotName} any more`);
  const later = all.filter((one) => one !== found && one.createTxg >= found.createTxg).map((one) => one.name);
  if (later.length === 0) return;
  throw new CheckpointError(
    'DISK_CHANGED',
    `putting ${volume} back to ${snapshot.snapshotName} would destroy what came later: ${later.join(', ')}`,
    {
      hint:
        `restore with a copy of the older state as disk and --keep-disks (zfs clone ${quoted(name)} NEW), or remove those first, ` +
        'if no checkpoint needs them (cairn forget --with-disks, zfs destroy)',
      detail: { volume, snapshots: later },
    },
  );
}

function valueOf<Value>(answer: Answer<Value>): Value {
  if ('value' in answer) return answer.value;
  throw diskLost(`cannot ask for ZFS volumes: ${answer.whyNot}`);
}
