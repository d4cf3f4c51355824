/**
 * Whether a guest balloons, without a library of Xen.
 *
 * After the first epoch libxc sends the pages that the hypervisor has flagged, and a page that the balloon
 * driver gave back and got again is not flagged. A guest that does that would be stored with old contents or
 * holes, so it is refused: at the start when it has not all of its memory, and later as soon as its target or
 * what it has is another than at the start.
 *
 * Source: docs/misc/xenstore-paths.pandoc of Xen (memory/target, memory/static-max, vm).
 */

import { CheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
import { videoKibOf } from '../domain/memory-target.js';
import { domainIdOf, objectOf, runXenTool, runXl, textOf } from '../domain/xl.js';

export interface DomainMemory {
  /** The target that xenstore tells the guest: without the memory of a graphics card. */
  readonly targetKib: number;
  readonly staticMaxKib: number;
  /** The memory that `xl list` shows. */
  readonly currentMib: number;
}

/** @throws VM_UNREACHABLE when that domain is none of this host */
export type ReadDomainMemory = (name: string, uuid: string) => Promise<DomainMemory>;

const KIB_PER_MIB = 1024;
const PAGES_PER_MIB = 256;
/** `xl list` counts whole MiB, and a guest may have a few pages less. */
const SLACK_MIB = 1;

export class MemoryWatch {
  readonly #config: JsonObject;
  readonly #read: ReadDomainMemory;
  #first: DomainMemory | undefined;

  constructor(config: JsonObject, read: ReadDomainMemory = readDomainMemory) {
    this.#config = config;
    this.#read = read;
  }

  /**
   * @param presentPages that have memory behind them, once the stream has told
   * @throws VM_UNSUPPORTED, VM_UNREACHABLE, FFI_FAILED
   */
  async check(presentPages?: number): Promise<void> {
    const created = objectOf(this.#config.c_info);
    const now = await this.#read(textOf(created.name), textOf(created.uuid));
    this.#first ??= this.#checkedFirst(now);
    const { targetKib, staticMaxKib, currentMib } = this.#first;
    if (
      now.targetKib !== targetKib ||
      now.staticMaxKib !== staticMaxKib ||
      Math.abs(now.currentMib - currentMib) > SLACK_MIB
    )
      throw ballooning(
        `its memory changed from ${targetKib} KiB (${currentMib} MiB in use) to ${now.targetKib} KiB (${now.currentMib} MiB)`,
      );
    const maxMib = staticMaxKib / KIB_PER_MIB;
    const sentMib = presentPages === undefined ? maxMib : presentPages / PAGES_PER_MIB;
    if (sentMib < maxMib - SLACK_MIB)
      throw ballooning(`${sentMib.toFixed(0)} of its ${maxMib} MiB are in the stream`);
  }

  #checkedFirst(now: DomainMemory): DomainMemory {
    const maxMib = now.staticMaxKib / KIB_PER_MIB;
    if (now.targetKib + videoKibOf(this.#config) !== now.staticMaxKib)
      throw ballooning(`it was told to have ${now.targetKib} of at most ${now.staticMaxKib} KiB`);
    if (now.currentMib < Math.floor(maxMib) - SLACK_MIB)
      throw ballooning(`it has ${now.currentMib} of ${maxMib} MiB`);
    return now;
  }
}

export function ballooning(what: string): CheckpointError {
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `the stream does not tell all changes of this guest: ${what}`,
    {
      hint:
        'the guest must keep all of its memory while xl remus runs: maxmem equal to memory, and no xl mem-set; ' +
        'or take its checkpoints with cairn checkpoint xen:NAME, which sees that',
      detail: { hazard: 'XEN_BALLOON' },
    },
  );
}

export async function readDomainMemory(name: string, uuid: string): Promise<DomainMemory> {
  const domid = await domainIdOf(name);
  const home = `/local/domain/${domid}`;
  const [targetKib, staticMaxKib, vm] = await Promise.all([
    storeText(`${home}/memory/target`),
    storeText(`${home}/memory/static-max`),
    storeText(`${home}/vm`),
  ]);
  if (vm.toLowerCase() !== `/vm/${uuid.toLowerCase()}`) {
    throw new CheckpointError(
      'VM_UNREACHABLE',
      `the domain ${name} of this host is not the one in the stream`,
      {
        hint: 'cairn receive must run in dom0 of the host that the guest runs on',
      },
    );
  }
  const columns = (await runXl(['list', String(domid)])).trim().split('\n').at(-1)?.trim().split(/\s+/) ?? [];
  const found = {
    targetKib: Number(targetKib),
    staticMaxKib: Number(staticMaxKib),
    // Counted from the end: a name may have spaces.
    currentMib: Number(columns.at(-4)),
  };
  if (Object.values(found).every((value) => Number.isFinite(value) && value > 0)) return found;
  throw new CheckpointError('FFI_FAILED', `how much memory the domain ${name} has could not be read`);
}

async function storeText(path: string): Promise<string> {
  return (await runXenTool('xenstore-read', [path], 'xenstore-utils')).trim();
}
