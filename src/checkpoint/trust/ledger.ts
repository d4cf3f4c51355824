/**
 * The ledger: which committed checkpoint the dirty tracker of a running VM counts from.
 *
 * A tracker only knows "written since the last collect". Between a collect and the durable manifest the bits
 * are gone from the tracker and their pages are nowhere else: owed. One small file per running VM, in the
 * runtime folder, says so across processes:
 *
 *     owed                     a collect may have happened that no manifest covers: compare all pages
 *     clean, checkpoint X      every collect up to now is covered by checkpoint X of that repository
 *     clean, X, rewound to R   the same, but the VM was put back to R afterwards: every page in which R differs from X
 *                              counts as written, besides what the tracker reports
 *
 * It is written before the first collect of a checkpoint and after the manifest. Not synced to disk: if the
 * host goes down, the VM and its tracker go with it.
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { VmIdentity } from '../../hypervisor/vm.js';
import { fileNameOf, writeRuntimeFile } from '../../host/runtime-file.js';

export interface LedgerEntry {
  readonly state: 'owed' | 'clean';
  /** `DirtyTracker.token` of the record that was collected from. */
  readonly token: string;
  readonly repositoryId: string;
  readonly chain: string;
  readonly checkpointId: string;
  /** Of the same chain. */
  readonly rewoundTo?: string;
}

export class Ledger {
  readonly #path: string;

  constructor(runtimeDir: string, identity: VmIdentity) {
    this.#path = join(runtimeDir, `ledger-${fileNameOf(identity)}`);
  }

  /**
   * Undefined when nothing was ever written, or what is there cannot be read: then nothing may be trusted.
   */
  async read(): Promise<LedgerEntry | undefined> {
    try {
      const entry = JSON.parse(await readFile(this.#path, 'utf8')) as Partial<LedgerEntry>;
      const whole = [entry.state, entry.token, entry.repositoryId, entry.chain, entry.checkpointId].every(
        (field) => typeof field === 'string',
      );
      const { rewoundTo } = entry;
      if (rewoundTo !== undefined && typeof rewoundTo !== 'string') return undefined;
      return whole ? (entry as LedgerEntry) : undefined;
    } catch {
      return undefined;
    }
  }

  async write(entry: LedgerEntry): Promise<void> {
    await writeRuntimeFile(this.#path, JSON.stringify(entry));
  }
}
