/**
 * Disk snapshots that others than the hypervisor were asked for, by checkpoints that may never have been
 * committed: written down before the pause. When Cairn is killed in it, such a snapshot is there with nobody
 * to drop it, or comes into being only afterwards, when a storage that hung goes on. The next checkpoint that
 * is committed drops those of which no manifest tells: by then the storage has done as it was told again.
 *
 * Lives as long as the ledger: until the VM ends. Only entries of the same repository in the same place are
 * touched: nobody else knows what was committed, and a copy of a repository has its id.
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { describeError, isCheckpointError } from '../errors.js';
import { diskEntry, readDiskEntry } from '../format/disk-entry.js';
import { JsonFields } from '../records/json-fields.js';
import type { DiskSnapshot } from '../hypervisor/disks.js';
import type { Vm } from '../hypervisor/vm.js';
import { fileNameOf, writeRuntimeFile } from '../host/runtime-file.js';
import type { JsonObject } from '../types.js';
import type { DiskPlan } from './disk-plan.js';

interface BegunSnapshots {
  readonly repositoryId: string;
  /** Where the repository lies; empty in a record of an older version. */
  readonly location: string;
  readonly checkpointId: string;
  readonly snapshots: readonly DiskSnapshot[];
}

export class SnapshotRecord {
  readonly #path: string;
  readonly #vm: Vm;
  readonly #repositoryId: string;
  readonly #location: string;

  constructor(runtimeDir: string, vm: Vm, repositoryId: string, location: string) {
    this.#path = join(runtimeDir, `ledger-${fileNameOf(vm.identity)}.snapshots`);
    this.#vm = vm;
    this.#repositoryId = repositoryId;
    this.#location = location;
  }

  /**
   * Writes down, before the pause of a checkpoint, what will be asked for. Nothing is written when nobody but
   * the hypervisor will be asked.
   */
  async add(checkpointId: string, plan: DiskPlan): Promise<void> {
    const snapshots = plan.flatMap(({ disks, driver }) => this.#vm.disks.plan(checkpointId, disks, driver));
    if (snapshots.length === 0) return;
    const entry = { repositoryId: this.#repositoryId, location: this.#location, checkpointId, snapshots };
    await this.#write([...(await this.#read()), entry]);
  }

  /**
   * Drops what a checkpoint took that certainly is not there. Never throws; what cannot be dropped is for
   * `settle`.
   */
  async dropFailed(checkpointId: string, snapshots: readonly DiskSnapshot[], cause: unknown): Promise<void> {
    try {
      if (snapshots.length > 0) await this.#vm.disks.drop(snapshots);
      if (!mayHaveLeftSnapshots(cause)) await this.#remove(checkpointId);
    } catch (error) {
      // The failure that led here is what the caller must hear of; what stays behind on the disks is said
      // beside it.
      process.emitWarning(describeError(error));
    }
  }

  /**
   * Forgets, after a commit, the snapshots of checkpoints that were committed, and drops the others. What
   * cannot be dropped is tried again the next time.
   * @param isCommitted whether there is a manifest, readable or not
   * @returns what stays behind, in words
   */
  async settle(isCommitted: (checkpointId: string) => Promise<boolean>): Promise<readonly string[]> {
    const failures: string[] = [];
    for (const { checkpointId, snapshots, repositoryId, location } of await this.#read()) {
      if (repositoryId !== this.#repositoryId || location !== this.#location) continue;
      try {
        if (!(await isCommitted(checkpointId))) await this.#vm.disks.drop(snapshots);
        await this.#remove(checkpointId);
      } catch (error) {
        failures.push(
          `disk snapshots of the failed checkpoint ${checkpointId} stay: ${describeError(error)}`,
        );
      }
    }
    return failures;
  }

  async #remove(checkpointId: string): Promise<void> {
    const entries = await this.#read();
    const rest = entries.filter((entry) => entry.checkpointId !== checkpointId);
    if (rest.length < entries.length) await this.#write(rest);
  }

  /** Gives nothing as well when the file cannot be read: it was cut off, or is none of ours. */
  async #read(): Promise<readonly BegunSnapshots[]> {
    try {
      const record = JSON.parse(await readFile(this.#path, 'utf8')) as JsonObject[];
      return new JsonFields(this.#path, { record }).list('record', readBegun);
    } catch {
      return [];
    }
  }

  async #write(entries: readonly BegunSnapshots[]): Promise<void> {
    const record = entries.map(({ snapshots, ...entry }) => ({
      ...entry,
      snapshots: snapshots.map(diskEntry),
    }));
    await writeRuntimeFile(this.#path, JSON.stringify(record));
  }
}

function readBegun(fields: JsonFields): BegunSnapshots {
  return {
    repositoryId: fields.text('repositoryId'),
    location: fields.has('location') ? fields.text('location') : '',
    checkpointId: fields.text('checkpointId'),
    snapshots: fields.list('snapshots', (entry) => readDiskEntry(entry)),
  };
}

/** See `VmDisks.snapshot`. */
function mayHaveLeftSnapshots(cause: unknown): boolean {
  if (!isCheckpointError(cause, 'DISK_SNAPSHOT_FAILED')) return false;
  const { possiblyPresent } = cause.detail;
  return Array.isArray(possiblyPresent) && possiblyPresent.length > 0;
}
