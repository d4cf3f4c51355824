/**
 * Disks on images of Ceph RBD that QEMU opens itself (its block driver `rbd`): which can be snapshotted, and
 * their snapshots in the pause.
 *
 * The program `rbd` takes the snapshots, and not QEMU's blockdev-snapshot-internal-sync, for two reasons,
 * both seen with QEMU 7.2. QEMU does not take the member of a failed transaction back ("rbd do not support
 * snapshot id"), so one of two images would keep its snapshot. And it waits for the cluster with its main
 * loop: as long as that hangs, `cont` is not heard. What QEMU holds back in its cache is in the snapshot all
 * the same: `stop` flushes all disks, and librbd flushes once more when the snapshot is asked of the client
 * that holds the image's lock.
 *
 * The snapshot is named `cairn-ID` and stays until somebody removes it.
 */

import { realpath } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';

import { CheckpointError } from '../../../src/errors.js';
import type { DiskDriver } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../../src/hypervisor/disks.js';
import type { DiskDriverKind } from '../disk-means.js';
import { runTool, type RunTool } from '../run-tool.js';
import { quoted } from '../shell-quote.js';
import { snapshotFailed } from '../snapshot-errors.js';
import { locationIn, nameOfImage, type RbdLocation } from './image-names.js';
import { imageFacts, rbd, rbdFailure, watchers } from './rbd-command.js';
import { imageRecord, imageSnapshot, RBD, type ImageSnapshot, type SnapshotImage } from './rbd-record.js';
import { checkImages, keepImages, rollBackImages } from './rbd-restore.js';

/**
 * The guest stands still. With the grace of `runTool` for a program that does not end at once, the two come
 * to 21 s.
 */
const SNAPSHOT_LIMIT_MS = 10_000;
/** Limit for removing a snapshot whose sister failed: the guest still stands. */
const UNDO_LIMIT_MS = 5000;
const REMOVE_LIMIT_MS = 30_000;
/** What rbd says when the snapshot is not there, or was there before. */
const ABSENT = 'No such file or directory';
const PRESENT_BEFORE = 'File exists';
/** What the kernel makes of `rbd map`: /dev/rbd0, and by udev's rules /dev/rbd/POOL/IMAGE. */
const MAPPED = /^\/dev\/rbd[\d/]/;

interface Removal {
  readonly state: 'removed' | 'absent' | 'there';
  readonly text: string;
}

const TRAITS = { name: RBD, medium: 'Ceph RBD', takenBy: 'storage', isRemovable: true } as const;

export const rbdDriver: DiskDriverKind = { ...TRAITS, open: () => new RbdDriver() };

export class RbdDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #run: RunTool;
  readonly #ownAddresses: () => readonly string[];
  /** Images that the last `describe` found, by id of the disk. */
  readonly #images = new Map<string, SnapshotImage>();
  /** Images of the last `describe` that QEMU uses, or that the cluster did not answer for in time. */
  #toAsk: readonly RbdLocation[] = [];

  constructor(run: RunTool = runTool, ownAddresses = addressesOfHost) {
    this.#run = run;
    this.#ownAddresses = ownAddresses;
  }

  /**
   * Returns the same disks; a disk on RBD has with it what can be done for it, and `rbd:POOL/IMAGE` for a
   * path. Asks the cluster only when there is such a disk. A cluster that does not answer is found out here,
   * before anything is paused.
   */
  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    this.#images.clear();
    this.#toAsk = [];
    return Promise.all(disks.map(async (disk) => (disk.writable ? this.#describe(disk) : disk)));
  }

  /**
   * Asks whether the cluster answers for the images: if not, `stop` may wait for requests that QEMU has under
   * way there, and the guest stands.
   * @returns false when there is nothing to ask
   * @throws DISK_STALLED, within 18 s
   */
  async checkStorage(): Promise<boolean> {
    const answers = await Promise.all(this.#toAsk.map((image) => watchers(this.#run, image)));
    const failures = answers.flatMap((answer) => ('whyNot' in answer ? [answer.whyNot] : []));
    if (failures.length === 0) return answers.length > 0;
    throw new CheckpointError(
      'DISK_STALLED',
      `the storage of a disk does not answer: ${failures.join('; ')}`,
      {
        hint: 'nothing was paused: the VM would stand still for as long as QEMU waits for the disk; `ceph -s` tells more',
        retryable: true,
      },
    );
  }

  /** What `snapshot` would take. @param disks of the last `describe` */
  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return disks.flatMap((disk) => {
      const image = this.#images.get(disk.id);
      return image === undefined ? [] : [imageRecord(planned(name, disk, image))];
    });
  }

  async #describe(disk: VmDisk): Promise<VmDisk> {
    const location = locationIn(disk.path);
    if (location === undefined) return withoutMapping(disk);
    const none = { ...disk, snapshotModes: [] };
    if ('whyNot' in location) return { ...none, whyNoSnapshot: location.whyNot };
    const path = nameOfImage(location);
    const [facts, users] = await Promise.all([
      imageFacts(this.#run, location),
      watchers(this.#run, location),
    ]);
    for (const answer of [facts, users]) {
      if (!('whyNot' in answer)) continue;
      if (answer.isStalled) this.#toAsk = [...this.#toAsk, location];
      return { ...none, path, whyNoSnapshot: answer.whyNot };
    }
    if (!('value' in facts && 'value' in users)) return none;
    if (!users.value.some((address) => this.#isOwn(address)))
      return { ...none, path, whyNoSnapshot: notOpen(location) };
    this.#toAsk = [...this.#toAsk, location];
    this.#images.set(disk.id, { ...location, id: facts.value.id });
    return { ...disk, path, snapshotModes: [RBD] };
  }

  /** Whoever knows the cluster by another way than QEMU may find another image of the same name. */
  #isOwn(watcher: string): boolean {
    const address = /^\[?(?<ip>.*?)\]?:\d+\/\d+$/.exec(watcher)?.groups?.ip ?? '';
    return this.#ownAddresses().includes(address);
  }

  /**
   * Snapshots of all, or none. The VM stands still.
   * @param disks of the last `describe`
   * @throws DISK_SNAPSHOT_FAILED, within 21 s whatever the cluster does
   */
  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const wanted = disks.map((disk) => {
      const image = this.#images.get(disk.id);
      if (image === undefined) throw failed(`${disk.path} is not known as an image of RBD`, []);
      return { image, snapshot: planned(name, disk, image) };
    });
    const results = await Promise.all(
      wanted.map(async ({ image, snapshot }) => {
        const command = ['snap', 'create', '--no-progress', `--snap=${snapshot.snapshotName}`];
        const result = await rbd(this.#run, image, command, SNAPSHOT_LIMIT_MS);
        const failure = rbdFailure(image, 'snap create', result);
        return { snapshot, failure, isLate: result.kind === 'late' };
      }),
    );
    const failures = results.map(({ failure }) => failure).filter((failure) => failure !== '');
    if (failures.length === 0) return results.map(({ snapshot }) => imageRecord(snapshot));
    // One that failed may be there all the same, when the answer was lost.
    const ours = results.filter(({ failure }) => !failure.includes(PRESENT_BEFORE));
    const left = await Promise.all(
      ours.map(async ({ snapshot, isLate }) => {
        const { state, text } = await this.#remove(snapshot, UNDO_LIMIT_MS);
        // The program was killed, not what it had asked of the cluster and of the client that has the image
        // open.
        if (isLate && state === 'absent')
          return `${snapshot.snapshotName} of ${snapshot.path}, which may still come into being`;
        return text;
      }),
    );
    throw failed(
      failures.join('; '),
      left.filter((text) => text !== ''),
    );
  }

  /** @throws DISK_SNAPSHOT_FAILED naming what stays behind */
  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const wanted = snapshots.map(imageSnapshot);
    const results = await Promise.all(wanted.map((snapshot) => this.#remove(snapshot, REMOVE_LIMIT_MS)));
    const left = results.map(({ text }) => text).filter((text) => text !== '');
    if (left.length > 0) throw failed('snapshots of a failed checkpoint cannot be removed', left);
  }

  remedy(record: DiskSnapshot): string {
    const { path, snapshotName } = imageSnapshot(record);
    return `rbd snap rm ${quoted(`${path.replace(/^rbd:/, '')}@${snapshotName}`)}`;
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await checkImages(snapshots.map(imageSnapshot), this.#run);
  }

  async keep(name: string, snapshots: readonly DiskSnapshot[]): Promise<readonly DiskSnapshot[]> {
    const kept = snapshots.map((record) => ({ ...imageSnapshot(record), snapshotName: `cairn-${name}` }));
    await keepImages(kept, this.#run);
    return kept.map(imageRecord);
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await rollBackImages(snapshots.map(imageSnapshot), this.#run);
  }

  /** @returns `text`: what stays behind, empty when it is not there (any more) */
  async #remove({ image, snapshotName }: ImageSnapshot, limitMs: number): Promise<Removal> {
    const command = ['snap', 'rm', '--no-progress', `--snap=${snapshotName}`];
    const failure = rbdFailure(image, 'snap rm', await rbd(this.#run, image, command, limitMs));
    if (failure === '') return { state: 'removed', text: '' };
    if (failure.includes(ABSENT)) return { state: 'absent', text: '' };
    return { state: 'there', text: `${snapshotName} of ${failure}` };
  }
}

/**
 * A mapped image is not QEMU's to flush, nor was it tried. QEMU itself takes the snapshots of qcow2 on such
 * an image.
 */
async function withoutMapping(disk: VmDisk): Promise<VmDisk> {
  if (disk.snapshotModes.length > 0) return disk;
  const device = await realpath(disk.path).catch(() => disk.path);
  if (!MAPPED.test(disk.path) && !MAPPED.test(device)) return disk;
  return {
    ...disk,
    whyNoSnapshot: "it is an image of Ceph that the kernel maps, not opened by QEMU's own driver rbd",
  };
}

function notOpen({ conf }: RbdLocation): string {
  const cluster = conf === '' ? 'the default cluster' : `the cluster of ${conf}`;
  return `no client of this host has that image of ${cluster} open, so it may be another one than QEMU's`;
}

function planned(name: string, { id, path }: VmDisk, image: SnapshotImage): ImageSnapshot {
  return { diskId: id, path, snapshotName: `cairn-${name}`, image };
}

function failed(why: string, possiblyPresent: readonly string[]): Error {
  return snapshotFailed(
    'rbd',
    why,
    possiblyPresent,
    'the next checkpoint of the VM removes it; `rbd snap ls` shows what is there, `rbd snap rm` removes it by hand',
  );
}

function addressesOfHost(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
}
