/** Rewinds a QEMU: the parts are in the files beside, the order of things in `src/rewind`. */

import { CheckpointError } from '../../../src/errors.js';
import { sameLayout, type MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { PreparedRewind, RewindNote, RewindTarget, VmRewind } from '../../../src/hypervisor/rewind.js';
import type { JsonObject, PageRuns } from '../../../src/types.js';
import { GuestWriter } from '../memory/guest-writer.js';
import { listRamBlocks, type RamBlock } from '../memory/ram-blocks.js';
import { mappedRegions } from '../memory/stretches.js';
import type { KvmDeviceState } from '../run/kvm-device-state.js';
import type { KvmRunState } from '../run/kvm-run-state.js';
import type { RunStateControl } from '../run/run-state.js';
import type { Monitor } from '../../qemu/monitor.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { deviceSections } from '../../qemu/stream/device-state.js';
import { deviceStream } from '../../qemu/stream/writer.js';
import { vmstateImage } from '../../qemu/vmstate-image.js';
import { refuseUnfit } from './preconditions.js';
import { refused } from './refused.js';
import { rolledDisks, type RolledDisks } from './rolled-disks.js';
import { refuseOtherDevices } from './same-devices.js';
import { dismissLeft, loadSnapshot } from './snapshot-load.js';
import { VmstateNode } from './vmstate-node.js';

export interface KvmRewindDeps {
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  readonly control: RunStateControl;
  readonly runState: KvmRunState;
  readonly deviceState: KvmDeviceState;
  readonly look: () => Promise<{
    readonly layout: MemoryLayout;
    readonly blocks: readonly RamBlock[] | undefined;
  }>;
}

export class KvmRewind implements VmRewind {
  readonly #deps: KvmRewindDeps;

  constructor(deps: KvmRewindDeps) {
    this.#deps = deps;
  }

  unfinished(): RewindNote | undefined {
    const note = this.#deps.control.unfinishedRewind();
    return note === undefined ? undefined : readNote(note);
  }

  async prepare(
    target: RewindTarget,
    { keepDisks }: { readonly keepDisks: boolean },
  ): Promise<PreparedRewind> {
    const { monitor, process, deviceState, look } = this.#deps;
    const sections = deviceSections(target.deviceState);
    await refuseUnfit(monitor, target.machineType);
    const disks = rolledDisks(await monitor.execute('query-block'), target.disks, keepDisks);
    const { layout, blocks } = await look();
    if (blocks === undefined || !sameLayout(layout, target.layout))
      throw refused('MEMORY_CHANGED', 'the memory of the VM is not laid out as in the checkpoint', {
        hint: 'unplug what memory came, plug in again what went, or use cairn restore',
      });
    // One that is half-way is not asked for its state: its devices may be in none.
    if (this.unfinished() === undefined) {
      await deviceState.save();
      refuseOtherDevices(await deviceState.take(), target.deviceState);
    }
    await dismissLeft(monitor);
    const tag = disks.tag ?? `cairn-${target.checkpointId}`;
    const image = vmstateImage(tag, deviceStream(target.machineType, sections));
    const node = await VmstateNode.open(monitor, image);
    const writer = new GuestWriter(process, mappedRegions(layout, blocks));
    return new PreparedKvmRewind(this.#deps, { target, disks, tag, node, writer });
  }
}

interface Prepared {
  readonly target: RewindTarget;
  readonly disks: RolledDisks;
  readonly tag: string;
  readonly node: VmstateNode;
  readonly writer: GuestWriter;
}

class PreparedKvmRewind implements PreparedRewind {
  readonly #deps: KvmRewindDeps;
  readonly #prepared: Prepared;
  #blocks: ReturnType<typeof listRamBlocks> | undefined;

  constructor(deps: KvmRewindDeps, prepared: Prepared) {
    this.#deps = deps;
    this.#prepared = prepared;
  }

  get disks(): readonly string[] {
    return this.#prepared.disks.texts;
  }

  pause(stopping: () => void): Promise<boolean> {
    return this.#deps.runState.pauseToRewind({ stopping });
  }

  giveUp(): Promise<void> {
    return this.#deps.runState.resume();
  }

  async commit(note: RewindNote): Promise<void> {
    await this.#deps.runState.beginRewind({ ...note });
  }

  write(runs: PageRuns, bytes: Uint8Array | null): void {
    this.#prepared.writer.writeRuns(runs, bytes);
  }

  async load(): Promise<void> {
    const { monitor } = this.#deps;
    const { tag, disks, node } = this.#prepared;
    await loadSnapshot(monitor, { tag, vmstate: node.name, disks: disks.nodes });
    // Asked while memory is written.
    this.#blocks = listRamBlocks(monitor);
    this.#blocks.catch(() => undefined);
  }

  async finish(runs: boolean, running: () => void): Promise<void> {
    // A reset may have given a block of firmware tables another length.
    const { regions } = this.#prepared.target.layout;
    const blocks = (await this.#blocks) ?? [];
    const isSame = regions.every(({ id, sizeBytes }) =>
      blocks.some((block) => block.id === id && block.sizeBytes === sizeBytes),
    );
    if (!isSame)
      throw new CheckpointError('REWIND_FAILED', 'memory regions have other lengths than in the checkpoint');
    await this.#deps.runState.endRewind(runs, running);
  }

  async close(): Promise<void> {
    await this.#prepared.node.close();
    await dismissLeft(this.#deps.monitor).catch(() => undefined);
  }
}

/** From the runtime folder, which is this user's own; what is not as it should be is empty. */
function readNote(note: JsonObject): RewindNote {
  const text = (key: string): string => {
    const value = note[key];
    return typeof value === 'string' ? value : '';
  };
  const { mayHold } = note;
  return {
    repositoryId: text('repositoryId'),
    chain: text('chain'),
    targetId: text('targetId'),
    mayHold: Array.isArray(mayHold) ? mayHold.filter((id) => typeof id === 'string') : [],
    token: text('token'),
    wasRunning: note.wasRunning === true,
  };
}
