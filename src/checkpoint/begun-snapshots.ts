/**
 * Disk snapshots that others than the hypervisor were asked for, by checkpoints that may never have been committed: written down before the pause.
 * When Cairn is killed in it, such a snapshot is there with nobody to drop it, or comes into being only afterwards, when a storage that hung
 * goes on. The next checkpoint that is committed drops those of which no manifest tells: by then the storage has done as it was told again.
 *
 * Lives as long as the ledger: until the VM ends. Only entries of the same repository are touched, as nobody else knows what was committed.
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { describeError } from '../errors.js';
import type { DiskSnapshot, Vm, VmIdentity } from '../hypervisor/vm.js';
import { fileNameOf } from './ledger.js';
import { writeRuntimeFile } from './runtime-file.js';

export interface BegunSnapshots {
  readonly repositoryId: string;
  readonly checkpointId: string;
  readonly snapshots: readonly DiskSnapshot[];
}

export class SnapshotRecord {
  readonly #path: string;

  constructor(runtimeDir: string, identity: VmIdentity) {
    this.#path = join(runtimeDir, `ledger-${fileNameOf(identity)}.snapshots`);
  }

  async add(entry: BegunSnapshots): Promise<void> {
    await this.#write([...(await this.#read()), entry]);
  }

  async remove(checkpointId: string): Promise<void> {
    const entries = await this.#read();
    const rest = entries.filter((entry) => entry.checkpointId !== checkpointId);
    if (rest.length < entries.length) await this.#write(rest);
  }

  /**
   * Forgets those of checkpoints that were committed and drops the others. What cannot be dropped is tried again the next time.
   * @param isCommitted whether there is a manifest, readable or not
   * @returns what stays behind, in words
   */
  async settle(
    vm: Vm,
    repositoryId: string,
    isCommitted: (checkpointId: string) => Promise<boolean>,
  ): Promise<readonly string[]> {
    const failures: string[] = [];
    for (const { checkpointId, snapshots, ...entry } of await this.#read()) {
      if (entry.repositoryId !== repositoryId) continue;
      try {
        if (!(await isCommitted(checkpointId))) await vm.dropDiskSnapshots(snapshots);
        await this.remove(checkpointId);
      } catch (error) {
        failures.push(
          `disk snapshots of the failed checkpoint ${checkpointId} stay: ${describeError(error)}`,
        );
      }
    }
    return failures;
  }

  /** Empty as well when what is there cannot be read: it was cut off, or is none of ours. */
  async #read(): Promise<readonly BegunSnapshots[]> {
    try {
      const entries = JSON.parse(await readFile(this.#path, 'utf8')) as unknown;
      return Array.isArray(entries) ? (entries as readonly BegunSnapshots[]) : [];
    } catch {
      return [];
    }
  }

  async #write(entries: readonly BegunSnapshots[]): Promise<void> {
    await writeRuntimeFile(this.#path, JSON.stringify(entries));
  }
}
