/**
 * Small raw files that a VM writes to, above all its store of UEFI variables (`-drive if=pflash,format=raw`, <nvram> of
 * libvirt): copied in the pause, into the manifest itself. There is no snapshot to be lost, and none to look after.
 *
 *     before the pause   read and compressed, to know that it fits
 *     in the pause       read again; compressed again only when it has changed
 *     restore            written back into the same file, which QEMU has open by then
 *
 * What is read is what the guest has written. The flash of a PC writes each change to its file at once (pflash_update
 * of hw/block/pflash_cfi01.c), and `stop` waits for all requests and flushes; the kernel shows other processes the same
 * bytes, whether they were written through its page cache or past it (cache=none).
 *
 * The memory of the flash is also guest memory, and QEMU writes it to the file when a restored VM begins to run
 * (postload_update_cb there). So after a restore both are of the checkpoint, and stay so.
 */

import { constants } from 'node:fs';
import { access, open, readFile, rm, stat } from 'node:fs/promises';
import { resolve } from 'node:path';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';
import type { DiskDriver, ForkedDisk } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../../src/hypervisor/disks.js';
import { isLocalPath } from '../../qemu/image-names.js';
import type { DiskDriverKind, DiskMeans } from '../disk-means.js';
import { refuseOpenForWriting } from '../qcow2/images.js';
import { diskLost, snapshotFailed } from '../snapshot-errors.js';
import {
  contentOf,
  COPY,
  copyRecord,
  fileCopy,
  MAX_FILE_BYTES,
  MAX_STORED_BYTES,
  type Content,
} from './copy-record.js';

const TRAITS = {
  name: COPY,
  medium: `a raw file of up to ${MAX_FILE_BYTES >> 20} MiB`,
  takenBy: 'manifest',
  isRemovable: true,
} as const;

export const copyDriver: DiskDriverKind = { ...TRAITS, open: (means) => new CopyDriver(means) };

interface FoundFile {
  readonly filePath: string;
  /** As it was before the pause. */
  readonly content: Content;
}

export class CopyDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #means: DiskMeans;
  /** Files that the last `describe` found, by id of the disk. */
  readonly #files = new Map<string, FoundFile>();
  /** Copies beside files that are being put back, by the path of the file. */
  readonly #kept = new Map<string, string>();

  constructor(means: DiskMeans) {
    this.#means = means;
  }

  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    this.#files.clear();
    return Promise.all(disks.map((disk) => this.#describe(disk)));
  }

  async #describe(disk: VmDisk): Promise<VmDisk> {
    if (!disk.writable || disk.format !== 'raw' || !isLocalPath(disk.path)) return disk;
    const filePath = resolve(this.#means.cwd, disk.path);
    const found = await stat(filePath).catch(() => undefined);
    if (found?.isFile() !== true || found.size > MAX_FILE_BYTES) return disk;
    const content = await readContent(filePath).catch((error: unknown) => describeError(error));
    if (typeof content === 'string') return { ...disk, whyNoSnapshot: `it cannot be copied: ${content}` };
    if (content.stored.length > MAX_STORED_BYTES) return { ...disk, whyNoSnapshot: tooLarge(content) };
    this.#files.set(disk.id, { filePath, content });
    return { ...disk, snapshotModes: [...disk.snapshotModes, COPY] };
  }

  /** Nothing that outlives a checkpoint which fails. */
  plan(_name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return disks.flatMap(({ id, path }) => {
      const file = this.#files.get(id);
      if (file === undefined) return [];
      return [copyRecord({ diskId: id, path, filePath: file.filePath, ...file.content })];
    });
  }

  async snapshot(_name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const taken: DiskSnapshot[] = [];
    for (const { id, path } of disks) {
      const file = this.#files.get(id);
      if (file === undefined) throw failed(`${path} is not known as a small file`);
      const content = await readContent(file.filePath, file.content).catch((cause: unknown) => {
        throw failed(`${path}: ${describeError(cause)}`);
      });
      if (content.stored.length > MAX_STORED_BYTES) throw failed(`${path}: ${tooLarge(content)}`);
      taken.push(copyRecord({ diskId: id, path, filePath: file.filePath, ...content }));
    }
    return taken;
  }

  /** What a manifest holds goes with it; what was kept beside a file goes from there. */
  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { filePath } of snapshots.map(fileCopy)) {
      const kept = this.#kept.get(filePath);
      if (kept !== undefined) await rm(kept, { force: true });
      this.#kept.delete(filePath);
    }
  }

  remedy(record: DiskSnapshot): string {
    return `nothing: the copy of ${fileCopy(record).filePath} is in the checkpoint itself`;
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { filePath, bytes } of snapshots.map(fileCopy)) {
      const { length } = bytes;
      const found = await stat(filePath).catch(() => undefined);
      if (found?.isFile() !== true || found.size !== length) {
        const what = found?.isFile() === true ? `has ${found.size} bytes instead of ${length}` : 'is gone';
        throw diskLost(
          `the file ${filePath}, which the checkpoint has a copy of, ${what}`,
          `put a file of ${length} bytes there (truncate -s ${length}), with the owner that QEMU needs, and restore again: it gets the content of the checkpoint`,
        );
      }
      await refuseOpenForWriting(filePath, true);
      await this.#means.refuseInUse?.(filePath);
      await access(filePath, constants.W_OK).catch((cause: unknown) => {
        throw diskLost(`the file ${filePath} cannot be written: ${describeError(cause)}`);
      });
    }
  }

  /**
   * In memory, and beside the file for the case that this process is killed: `FILE.cairn-NAME`. Without the right to
   * make files there, in memory alone.
   */
  async keep(name: string, snapshots: readonly DiskSnapshot[]): Promise<readonly DiskSnapshot[]> {
    const kept: DiskSnapshot[] = [];
    try {
      for (const { diskId, path, filePath } of snapshots.map(fileCopy)) {
        const content = await readContent(filePath);
        kept.push(copyRecord({ diskId, path, filePath, ...content }));
        if (await writeNew(`${filePath}.cairn-${name}`, content.bytes))
          this.#kept.set(filePath, `${filePath}.cairn-${name}`);
      }
      return kept;
    } catch (cause) {
      await this.drop(kept);
      throw new CheckpointError(
        'RESTORE_FAILED',
        `keeping what a file is before it is put back: ${describeError(cause)}`,
        { cause, hint: 'nothing was touched: is there room on its file system?' },
      );
    }
  }

  /** Into the same file: owner, mode and labels stay, and QEMU has it open. */
  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { filePath, bytes } of snapshots.map(fileCopy)) {
      try {
        await writeInto(filePath, bytes);
      } catch (cause) {
        throw new CheckpointError('RESTORE_FAILED', `putting ${filePath} back: ${describeError(cause)}`, {
          cause,
        });
      }
    }
  }

  /** Each child has a file of its own with the content. */
  fork(record: DiskSnapshot): ForkedDisk {
    const { diskId, filePath: path, bytes } = fileCopy(record);
    return {
      ...{ diskId, path },
      check: () => Promise.resolve(),
      prepare: () => Promise.resolve(),
      standIn: (place) => ({
        path,
        format: 'raw',
        create: async () => {
          await writeNew(`${place}.raw`, bytes);
          return `${place}.raw`;
        },
      }),
    };
  }

  /** What the operator puts in the place of the file gets its content. */
  movedTo(record: DiskSnapshot, path: string): DiskSnapshot {
    const moved = { ...fileCopy(record), path, filePath: resolve(this.#means.cwd, path) };
    return { ...record, ...copyRecord(moved) };
  }

  movedBy(record: DiskSnapshot, move: (path: string) => string): DiskSnapshot {
    const { path, filePath, ...copy } = fileCopy(record);
    return { ...record, ...copyRecord({ ...copy, path: move(path), filePath: move(filePath) }) };
  }
}

/** @param before what it may still be: then it is not compressed again */
async function readContent(path: string, before?: Content): Promise<Content> {
  const bytes = await readFile(path);
  return before?.bytes.equals(bytes) === true ? before : contentOf(bytes);
}

/** @returns whether this user may make files there. @throws with none left behind */
async function writeNew(path: string, bytes: Buffer): Promise<boolean> {
  const file = await open(path, 'wx', 0o600).catch((error: unknown) => {
    if (NO_RIGHT.includes(systemErrorCode(error) ?? '')) return undefined;
    throw error;
  });
  if (file === undefined) return false;
  try {
    await file.writeFile(bytes);
    await file.sync();
    return true;
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  } finally {
    await file.close();
  }
}

const NO_RIGHT = ['EACCES', 'EPERM', 'EROFS'];

async function writeInto(path: string, bytes: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  try {
    for (let done = 0; done < bytes.length;)
      done += (await file.write(bytes, done, bytes.length - done, done)).bytesWritten;
    await file.sync();
  } finally {
    await file.close();
  }
}

function tooLarge({ bytes, stored }: Content): string {
  return `its ${bytes.length >> 10} KiB take ${stored.length >> 10} KiB compressed, of which a checkpoint holds ${MAX_STORED_BYTES >> 10} KiB at most; firmware that no guest writes to can be made read-only (readonly=on)`;
}

/** Nothing is left behind. */
function failed(why: string): CheckpointError {
  return snapshotFailed('copy', why, [], '');
}
