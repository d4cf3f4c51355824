/**
 * Putting images of Ceph RBD back to the snapshots of a checkpoint. The cluster does it (`rbd snap
 * rollback`), and keeps all snapshots.
 */

import { CheckpointError } from '../../../src/errors.js';
import { runTool, type RunTool } from '../run-tool.js';
import { diskLost } from '../snapshot-errors.js';
import { stillOpen } from '../still-open.js';
import { isLocation, nameOfImage } from './image-names.js';
import type { ImageSnapshot } from './rbd-record.js';
import { imageFacts, rbd, rbdFailure, snapshotNames, watchers, type Answer } from './rbd-command.js';

/**
 * osd_client_watch_timeout is 30 s: for so long a client that was killed counts as one that has the image
 * open.
 */
const CLOSING_WAIT_MS = 35_000;
const KEEP_LIMIT_MS = 60_000;
/** A rollback goes through all objects of the image. */
const ROLLBACK_LIMIT_MS = 12 * 3_600_000;

/**
 * Whether all can be put back, before anything is touched.
 * @throws RESTORE_FAILED when a snapshot is gone or the cluster does not answer, RESTORE_TARGET_BUSY when
 *   somebody has an image open
 */
export async function checkImages(
  disks: readonly ImageSnapshot[],
  run: RunTool = runTool,
  waitMs = CLOSING_WAIT_MS,
): Promise<void> {
  disks.forEach(refuseNames);
  for (const { image, snapshotName } of disks) {
    const { id } = valueOf(await imageFacts(run, image));
    if (id !== image.id) throw diskLost(`${nameOfImage(image)} is another image than that of the checkpoint`);
    if (!valueOf(await snapshotNames(run, image)).includes(snapshotName))
      throw diskLost(`${nameOfImage(image)} has no snapshot ${snapshotName} any more`);
  }
  const open = await stillOpen(async () => {
    for (const { image } of disks) {
      const [address] = valueOf(await watchers(run, image));
      if (address !== undefined) return { image, address };
    }
    return undefined;
  }, waitMs);
  if (open === undefined) return;
  const name = nameOfImage(open.image);
  throw new CheckpointError('RESTORE_TARGET_BUSY', `a client at ${open.address} has the image ${name} open`, {
    hint: 'stop the VM that uses it, or unmap it; `rbd status` lists the clients',
    detail: { path: name },
  });
}

/** Snapshots images that nobody has open. @throws RESTORE_FAILED with none left behind that is known of */
export async function keepImages(disks: readonly ImageSnapshot[], run: RunTool = runTool): Promise<void> {
  disks.forEach(refuseNames);
  for (const [i, { image, snapshotName }] of disks.entries()) {
    const command = ['snap', 'create', '--no-progress', `--snap=${snapshotName}`];
    const failure = rbdFailure(image, 'snap create', await rbd(run, image, command, KEEP_LIMIT_MS));
    if (failure === '') continue;
    for (const taken of disks.slice(0, i + 1)) {
      const remove = ['snap', 'rm', '--no-progress', `--snap=${taken.snapshotName}`];
      await rbd(run, taken.image, remove, KEEP_LIMIT_MS);
    }
    throw diskLost(
      `keeping what it is before it is put back, ${failure}`,
      'nothing was touched; `ceph -s` tells more',
    );
  }
}

/** @throws RESTORE_FAILED, possibly in the middle */
export async function rollBackImages(disks: readonly ImageSnapshot[], run: RunTool = runTool): Promise<void> {
  disks.forEach(refuseNames);
  for (const { image, snapshotName } of disks) {
    const command = ['snap', 'rollback', '--no-progress', `--snap=${snapshotName}`];
    const failure = rbdFailure(image, 'snap rollback', await rbd(run, image, command, ROLLBACK_LIMIT_MS));
    if (failure !== '')
      throw new CheckpointError('RESTORE_FAILED', `putting it back to ${snapshotName}, ${failure}`);
  }
}

/** What comes out of a repository must not become an option of `rbd`. */
function refuseNames({ image, snapshotName, path }: ImageSnapshot): void {
  if (isLocation(image) && /^cairn-[0-9a-z-]+$/.test(snapshotName)) return;
  throw diskLost(`the checkpoint does not say which image the disk ${path} is`);
}

function valueOf<Value>(answer: Answer<Value>): Value {
  if ('value' in answer) return answer.value;
  throw diskLost(`cannot look at ${answer.whyNot}`);
}
