/**
 * Putting the disks of a checkpoint back: all of them, or none. Before the first is touched, each is snapshotted as it is,
 * by the driver that has its snapshot; those snapshots are the way back, and go when the restore is over.
 *
 *     keep all  ->  roll back a, b, c  ->  the VM is loaded  ->  drop what was kept
 *                      |  b fails             |  fails
 *                      v                      v
 *                   b, a as they were      c, b, a as they were     ->  drop what was kept
 *
 * Some disks have no way back (a thick logical volume, a ZFS volume). They go last, so that a failure of any other finds
 * them untouched. Once one of them has gone back, a restore that fails later leaves all disks at the checkpoint: what
 * belongs together stays together.
 *
 * A Cairn that is killed in between leaves what it has kept, and the images as far as they are; the same restore, taken
 * again, finishes it.
 */

import { randomBytes } from 'node:crypto';

import { CheckpointError, describeError, isCheckpointError } from '../../src/errors.js';
import type { DiskDriver } from '../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';

/** Snapshots of the state before a restore are named so, with what comes before and after. */
export const BEFORE = 'before-';

/** The snapshots that one driver took. */
export interface Share {
  readonly driver: DiskDriver;
  readonly snapshots: readonly DiskSnapshot[];
}

interface KeptDisk {
  readonly driver: DiskDriver;
  readonly snapshot: DiskSnapshot;
  /** The way back. */
  readonly before: DiskSnapshot;
}

export class RolledBack {
  readonly #kept: readonly KeptDisk[];
  readonly #final: readonly Share[];
  #isOver = false;

  private constructor(kept: readonly KeptDisk[], final: readonly Share[]) {
    this.#kept = kept;
    this.#final = final;
  }

  /** @throws what a driver throws, and whether all disks are as they were before */
  static async of(shares: readonly Share[]): Promise<RolledBack> {
    const { kept, final } = await keepAll(shares.filter(({ driver }) => driver.standIn === undefined));
    const touched: KeptDisk[] = [];
    const begun: DiskSnapshot[] = [];
    try {
      for (const disk of kept) {
        touched.push(disk);
        await disk.driver.rollBack([disk.snapshot]);
      }
      for (const { driver, snapshots } of final) {
        begun.push(...snapshots);
        await driver.rollBack(snapshots);
      }
    } catch (cause) {
      const stays = await putBack(touched);
      await dropKept(kept.filter(({ before }) => !stays.has(before)));
      throw failed(cause, stays, begun);
    }
    return new RolledBack(kept, final);
  }

  /**
   * Nobody runs on the disks: they become what they were before the restore. Does nothing a second time, or after
   * `settle`. Never throws.
   * @returns what is not as it was, in words; empty when all is
   */
  async putBack(): Promise<string> {
    if (this.#isOver) return '';
    this.#isOver = true;
    const [one] = this.#final.flatMap(({ snapshots }) => snapshots);
    if (one !== undefined) {
      await dropKept(this.#kept);
      return `the disks are those of the checkpoint: ${one.path} (${one.driver}) has no way back`;
    }
    const stays = await putBack(this.#kept);
    await dropKept(this.#kept.filter(({ before }) => !stays.has(before)));
    return staysText(stays);
  }

  /** The VM runs, or nobody can tell: lets go of the way back. Never throws; what stays behind is a warning. */
  async settle(): Promise<void> {
    if (this.#isOver) return;
    this.#isOver = true;
    await dropKept(this.#kept);
  }
}

async function keepAll(
  shares: readonly Share[],
): Promise<{ readonly kept: readonly KeptDisk[]; readonly final: readonly Share[] }> {
  const name = `${BEFORE}${randomBytes(4).toString('hex')}`;
  const kept: KeptDisk[] = [];
  const final: Share[] = [];
  try {
    for (const { driver, snapshots } of shares) {
      const before = (await driver.keep?.(name, snapshots)) ?? [];
      const [there, lost]: [KeptDisk[], DiskSnapshot[]] = [[], []];
      for (const [i, snapshot] of snapshots.entries()) {
        const found = before[i];
        if (found === undefined) lost.push(snapshot);
        else there.push({ driver, snapshot, before: found });
      }
      kept.push(...there);
      if (lost.length > 0) final.push({ driver, snapshots: lost });
    }
    return { kept, final };
  } catch (error) {
    await dropKept(kept);
    throw error;
  }
}

/** @returns the snapshots that a disk could not be put back to, with the reason */
async function putBack(disks: readonly KeptDisk[]): Promise<ReadonlyMap<DiskSnapshot, string>> {
  const stays = new Map<DiskSnapshot, string>();
  for (const { driver, before } of [...disks].reverse()) {
    await driver.rollBack([before]).catch((error: unknown) => stays.set(before, describeError(error)));
  }
  return stays;
}

/** What is kept of a disk that could not be put back stays: it is the only copy of what was on it. */
async function dropKept(disks: readonly KeptDisk[]): Promise<void> {
  for (const { driver, before } of disks) {
    await driver
      .drop([before])
      .catch((error: unknown) =>
        process.emitWarning(
          `what was kept of ${before.path} for a restore that is over stays: ${describeError(error)}; ${driver.remedy(before)}`,
        ),
      );
  }
}

function staysText(stays: ReadonlyMap<DiskSnapshot, string>): string {
  return [...stays]
    .map(
      ([{ path, data }, why]) => `${path} is NOT as it was before (${why}); that is kept in ${keptIn(data)}`,
    )
    .join('; ');
}

/** The name of a snapshot or a file, as drivers record it. */
function keptIn({ snapshotName, clonePath }: DiskSnapshot['data']): string {
  return [snapshotName, clonePath].find((name) => typeof name === 'string' && name !== '') as string;
}

/**
 * Puts the disks of a restore that has failed back to what they were.
 * @param rolledBack undefined: none was touched yet
 * @param isInterrupted the caller says no more than that, so what is not as it was is a warning
 * @returns the error to throw
 */
export async function withDisksPutBack(
  failure: unknown,
  rolledBack: RolledBack | undefined,
  isInterrupted: boolean,
): Promise<unknown> {
  const stays = (await rolledBack?.putBack()) ?? '';
  if (stays === '') return failure;
  if (isInterrupted) process.emitWarning(stays);
  const { code, hint, detail } = isCheckpointError(failure)
    ? failure
    : { code: 'RESTORE_FAILED' as const, hint: undefined, detail: {} };
  return new CheckpointError(code, `${describeError(failure)}; ${stays}`, {
    cause: failure,
    ...(hint === undefined ? {} : { hint }),
    detail,
  });
}

/** @param begun disks without a way back, of which some are at the checkpoint now, or half way there */
function failed(
  cause: unknown,
  stays: ReadonlyMap<DiskSnapshot, string>,
  begun: readonly DiskSnapshot[],
): CheckpointError {
  const changed = [...stays.keys(), ...begun].map(({ path }) => path);
  const became = [
    ...(stays.size === 0 ? [] : [staysText(stays)]),
    ...(begun.length === 0
      ? []
      : [
          `${begun.map(({ path }) => path).join(', ')} may be at the checkpoint, or half way: there is no way back`,
        ]),
    ...(changed.length === 0 ? ['all disks are as they were before the restore'] : []),
  ];
  const { code, hint, detail } = isCheckpointError(cause)
    ? cause
    : { code: 'RESTORE_FAILED' as const, hint: undefined, detail: {} };
  const remedy = changed.length === 0 ? hint : 'see to what failed and restore again, which finishes it';
  return new CheckpointError(code, [describeError(cause), ...became].join('; '), {
    cause,
    ...(remedy === undefined ? {} : { hint: remedy }),
    detail: { ...detail, ...(changed.length === 0 ? {} : { notPutBack: changed }) },
  });
}
