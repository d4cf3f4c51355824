/** A guest under checkpoint for the live areas: a lab machine, a repository and a session on it. */

import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

import {
  openBackend,
  openSession,
  Repository,
  hypervisors,
  type CheckpointSession,
  type SessionOptions,
} from '../src/index.js';
import { PAGE_SIZE_BYTES } from '../src/types.js';
import { LabMachine, type LabDevice } from '../test/lab/machine.js';
import type { QemuVersion } from '../test/lab/support/lab-files.js';

export interface LiveGuestOptions {
  readonly memoryMib: number;
  /** Memory filled with data before anything is measured. */
  readonly fillMib: number;
  readonly qemu?: QemuVersion;
  readonly devices?: readonly LabDevice[];
  readonly session?: Partial<SessionOptions>;
}

export class LiveGuest {
  readonly machine: LabMachine;
  readonly session: CheckpointSession;
  readonly repo: string;
  #writes = 0;

  private constructor(machine: LabMachine, session: CheckpointSession, repo: string) {
    this.machine = machine;
    this.session = session;
    this.repo = repo;
  }

  static async start(options: LiveGuestOptions): Promise<LiveGuest> {
    const machine = await LabMachine.start({
      name: 'bench',
      memoryMib: options.memoryMib,
      devices: options.devices ?? ['net', 'balloon', 'vga'],
      ...(options.qemu === undefined ? {} : { qemu: options.qemu }),
    });
    await machine.guest(`lab fill ${options.fillMib}`, 900_000);
    const repo = join(machine.dir, 'repo');
    const session = await openSession(hypervisors(), machine.address, {
      repository: await Repository.init(openBackend(repo)),
      ...options.session,
    });
    return new LiveGuest(machine, session, repo);
  }

  /** Has the guest write new data over about `mib` MiB of its filled memory. */
  async dirty(mib: number): Promise<void> {
    await rewrite(this.machine, mib, ++this.#writes);
  }

  /**
   * The floor of a pause, timed as a checkpoint's: stop, device state, cont with nothing else, plus one copy of that many pages in memory.
   * @returns milliseconds
   */
  async floorMs(pageCount: number, from: Buffer, to: Buffer): Promise<number> {
    const { vm } = this.session;
    let started = 0;
    let ended = 0;
    await vm.runState.pause({ stopping: () => (started = performance.now()) });
    await vm.deviceState.save();
    await vm.runState.resume(() => (ended = performance.now()));
    const stopped = ended - started;
    await vm.deviceState.take();
    const copyFrom = performance.now();
    from.copy(to, 0, 0, pageCount * PAGE_SIZE_BYTES);
    return stopped + performance.now() - copyFrom;
  }

  async destroy(): Promise<void> {
    await this.session.close();
    await this.machine.discard();
  }
}

/** The n-th time, n from 1: a different stretch of the same random data each time, so that whole pages change, at a known count. */
export async function rewrite(machine: LabMachine, mib: number, n: number): Promise<void> {
  await machine.guest(
    `[ -e /tmp/target ] || dd if=/tmp/fill of=/tmp/target bs=1M count=${mib} 2>/dev/null; ` +
      `dd if=/tmp/fill of=/tmp/target bs=4096 count=${mib * 256} skip=${(n * 53) % 8192} conv=notrunc 2>/dev/null`,
    600_000,
  );
}
