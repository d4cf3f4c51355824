/**
 * One Cairn at a time for one running VM on this host. Two of them would clear each other's dirty bits.
 *
 * A file in the runtime folder, created exclusively, holding the owner's process id and start time; a lock
 * whose owner is gone is taken over.
 */

import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError, systemErrorCode } from '../errors.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import { fileNameOf } from './ledger.js';
import { isSameProcess, processStartTime } from './process-identity.js';

export class VmLock {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** @throws VM_LOCKED naming the process that has it */
  static async take(runtimeDir: string, identity: VmIdentity): Promise<VmLock> {
    const path = join(runtimeDir, `lock-${fileNameOf(identity)}`);
    const mine = JSON.stringify({ pid: process.pid, startTime: await processStartTime(process.pid) });
    for (let attempt = 0; attempt < 3; attempt++) {
      try {
        await writeFile(path, mine, { flag: 'wx', mode: 0o600 });
        return new VmLock(path);
      } catch (error) {
        if (systemErrorCode(error) !== 'EEXIST') throw error;
      }
      const owner = await readOwner(path);
      if (owner !== undefined && (await isSameProcess(owner.pid, owner.startTime))) {
        throw new CheckpointError(
          'VM_LOCKED',
          `process ${owner.pid} is already taking checkpoints of this VM`,
          {
            hint: 'wait for it, or stop it (SIGTERM ends a watcher cleanly)',
            retryable: true,
            detail: { pid: owner.pid },
          },
        );
      }
      await rm(path, { force: true });
    }
    throw new CheckpointError('VM_LOCKED', `cannot take the lock ${path}: others keep taking it`, {
      retryable: true,
    });
  }

  async release(): Promise<void> {
    await rm(this.#path, { force: true });
  }
}

async function readOwner(path: string): Promise<{ pid: number; startTime: string } | undefined> {
  try {
    const owner = JSON.parse(await readFile(path, 'utf8')) as { pid?: unknown; startTime?: unknown };
    if (typeof owner.pid === 'number' && typeof owner.startTime === 'string') {
      return { pid: owner.pid, startTime: owner.startTime };
    }
  } catch {
    // Gone in the meantime, or half written by a process that died: no owner either way.
  }
  return undefined;
}
