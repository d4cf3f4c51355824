/**
 * Forks of a QEMU: every child is an unmodified QEMU with the recorded command line that has the template
 * mapped, and gets the rest of its state as a migration stream. The same stream for all of them.
 *
 *     repository --pages--> template (main memory, shared)    --mapped copy on write--> QEMU of each child
 *                    `----> stream (ROM, video, devices)      --migrate-incoming------> QEMU of each child
 */

import { mkdir, readdir, rm, rmdir } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError, describeError } from '../../../src/errors.js';
import type { ForkedVm, ForkRequest, VmForks } from '../../../src/hypervisor/fork.js';
import type { CheckpointSource, RestorePlan } from '../../../src/hypervisor/restore.js';
import { formatCommandLine } from '../../disks/qcow2/command-line.js';
import { deviceSections } from '../../qemu/stream/device-state.js';
import { writeMigrationStream } from '../../qemu/stream/writer.js';
import { Child, type ChildDeps } from './child.js';
import { planChildren, type ForkPlan } from './fork-plan.js';
import { ForkKeeper } from './keeper.js';
import { giveToQemu, makeFolder } from './own-folder.js';
import { MemoryTemplate } from './template.js';

/** @throws see `Hypervisor.planForks` */
export async function planForks(source: CheckpointSource, request: ForkRequest): Promise<VmForks> {
  const sections = deviceSections(await source.deviceState());
  return new KvmForks(source, sections, request, await planChildren(source, request));
}

class KvmForks implements VmForks {
  readonly plan: RestorePlan;
  readonly notes: readonly string[];
  readonly #source: CheckpointSource;
  readonly #sections: Uint8Array;
  readonly #request: ForkRequest;
  readonly #planned: ForkPlan;
  readonly #template: MemoryTemplate;
  readonly #stream: Uint8Array[] = [];
  readonly #children = new Map<number, Child>();
  #keeper: ForkKeeper | undefined;
  /** What the disks of all children stand on, where that had to be made. */
  #sharedFolder = '';

  constructor(source: CheckpointSource, sections: Uint8Array, request: ForkRequest, planned: ForkPlan) {
    this.#source = source;
    this.#sections = sections;
    this.#request = request;
    this.#planned = planned;
    this.#template = new MemoryTemplate(planned.blocks);
    this.notes = planned.rights.notes;
    this.plan = {
      commands: planned.children.map(({ start }) => [start.program, ...formatCommandLine(start.options)]),
      details: [`in ${planned.children[0]!.start.cwd}, as user ${planned.rights.user}`],
      disks: planned.disks.map(({ diskId, path }) => `${diskId}: ${path} stays as it is, below new images`),
    };
  }

  get sharedFolders(): readonly string[] {
    return this.#sharedFolder === '' ? [] : [this.#sharedFolder];
  }

  async fill(): Promise<void> {
    const { folder } = this.#request;
    await mkdir(folder, { recursive: true }).catch((cause: unknown) => {
      throw new CheckpointError('RESTORE_FAILED', `making ${folder}: ${describeError(cause)}`, { cause });
    });
    const disks = ForkKeeper.start(this.#template.name).then((ready) => {
      this.#keeper = ready;
      return this.#prepareDisks();
    });
    // What fails first must not leave the other under way.
    for (const done of await Promise.allSettled([this.#fillMemory(), disks]))
      if (done.status === 'rejected') throw done.reason;
  }

  async start(index: number): Promise<ForkedVm> {
    const { disks, rights, children } = this.#planned;
    const deps: ChildDeps = {
      ...{ request: this.#request, rights, disks },
      ...{ template: this.#template.descriptors, stream: this.#stream },
      onFolder: (path) => this.#keeper?.tellFolder(path),
    };
    const child = new Child(index, children[index]!, deps);
    this.#children.set(index, child);
    return child.start();
  }

  run(index: number): Promise<void> {
    return this.#children.get(index)!.run();
  }

  async settle(): Promise<void> {
    await this.#keeper?.release();
    for (const child of this.#children.values()) await child.letGo();
    this.#template.close();
  }

  async end(): Promise<readonly string[]> {
    const left: string[] = [];
    const leave = (error: unknown): void => void left.push(describeError(error));
    await Promise.all([...this.#children.values()].map((child) => child.end().catch(leave)));
    this.#template.close();
    if (this.#sharedFolder !== '')
      await rm(this.#sharedFolder, { recursive: true, force: true }).catch(leave);
    await this.#keeper?.release();
    return left;
  }

  async #fillMemory(): Promise<void> {
    const { signal, onProgress } = this.#request;
    const { machineType, layout } = this.#source;
    const stream = writeMigrationStream(
      {
        ...{ machineType, layout, deviceSections: this.#sections },
        pages: (aborted) => this.#template.fill(this.#source, aborted),
      },
      {
        omitPagesOf: (id) => this.#template.has(id),
        onProgress: (done) => onProgress?.(done, layout.sizeBytes),
        ...(signal === undefined ? {} : { signal }),
      },
    );
    for await (const part of stream) this.#stream.push(part);
    this.#template.seal();
  }

  async #prepareDisks(): Promise<void> {
    const { disks, children, rights } = this.#planned;
    if (disks.length === 0) return;
    const shared = join(this.#request.folder, `${children[0]!.name}.disks`);
    makeFolder(shared, (path) => this.#keeper?.tellFolder(path));
    this.#sharedFolder = shared;
    for (const [i, disk] of disks.entries()) await disk.prepare(join(shared, `disk${i}`));
    // Of images that are there already nothing was made.
    const made = await readdir(shared);
    for (const path of [shared, ...made.map((name) => join(shared, name))]) await giveToQemu(path, rights);
    if (made.length > 0) return;
    await rmdir(shared);
    this.#sharedFolder = '';
  }
}
