/** The file of `xl save` as a checkpoint. */

import type { ImportedMachine, ImportRequest } from '../../src/hypervisor/hypervisor.js';
import { CheckpointError } from '../../src/errors.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import type { Json } from '../../src/types.js';
import { encodeDeviceState } from './device-state.js';
import { framesOf } from './guest-memory.js';
import { layoutOf, pageOfFrame, windowsOver, type FrameWindow } from './physmap.js';
import { readSaveFile, type SaveHead } from './stream/reader.js';
import type { StateRecord } from './stream/records.js';
import { objectOf, textOf } from './xl.js';

export const IMPORT_FORMATS: readonly string[] = ['xl'];

const PAGES_PER_KIB = 1 / 4;

/**
 * Reads the file twice: only at its end is it known which frames have memory.
 * @throws STREAM_MALFORMED, VM_UNSUPPORTED for a guest that is not PVH
 */
export async function importSaveFile({ open, place }: ImportRequest): Promise<ImportedMachine> {
  const before: StateRecord[] = [];
  const after: StateRecord[] = [];
  const frames = new Set<number>();
  let head: SaveHead | undefined;
  for await (const item of readSaveFile(open())) {
    if (item.kind === 'head') head = mustBePvh(item.head);
    else if (item.kind === 'state') (item.before ? before : after).push(item.record);
    else if (item.kind === 'emulator') throw unsupported('the state of a device model');
    else if (item.bytes === null) frames.delete(item.frame);
    else frames.add(item.frame);
  }
  if (head === undefined || frames.size === 0) {
    throw new CheckpointError('STREAM_MALFORMED', 'the save file has no memory in it');
  }
  const config = configOf(head);
  const created = objectOf(config.c_info);
  const maxPages = Number(objectOf(config.b_info).max_memkb ?? 0) * PAGES_PER_KIB;
  const layout = layoutOf(windowsOver(stretchesOf(frames), Math.ceil(maxPages)));
  const memory = place(layout);
  const present = new DirtyBitmap(layout.pageSpan);
  for await (const item of readSaveFile(open())) {
    if (item.kind !== 'page' || item.bytes === null || !frames.has(item.frame)) continue;
    const page = pageOfFrame(layout, item.frame);
    if (page === undefined)
      throw new CheckpointError('STREAM_MALFORMED', 'the save file changed while it was read');
    memory.put(page, item.bytes);
    present.set(page);
  }
  return {
    identity: {
      hypervisor: 'xen',
      name: textOf(created.name),
      uuid: textOf(created.uuid),
      machineType: 'xen-pvh',
    },
    machine: { config, guestKind: 'pvh', xenMajor: head.xenMajor, xenMinor: head.xenMinor },
    deviceState: encodeDeviceState({
      guestType: head.guestType,
      presentFrames: framesOf(layout, present),
      before,
      after,
    }),
  };
}

function mustBePvh(head: SaveHead): SaveHead {
  const type = textOf(objectOf(configOf(head).c_info).type);
  if (type === 'pvh') return head;
  throw unsupported(`a guest of type "${type}"`);
}

function configOf(head: SaveHead): ReturnType<typeof objectOf> {
  try {
    return objectOf(JSON.parse(head.config) as Json);
  } catch (cause) {
    throw new CheckpointError('STREAM_MALFORMED', 'the configuration in the save file is no JSON', { cause });
  }
}

function unsupported(what: string): CheckpointError {
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `the save file holds ${what}; only PVH guests can be imported`,
    {
      hint: 'restore it with xl',
    },
  );
}

function stretchesOf(frames: ReadonlySet<number>): readonly FrameWindow[] {
  const stretches: { firstFrame: number; frameCount: number }[] = [];
  for (const frame of [...frames].sort((a, b) => a - b)) {
    const last = stretches.at(-1);
    if (last !== undefined && last.firstFrame + last.frameCount === frame) last.frameCount++;
    else stretches.push({ firstFrame: frame, frameCount: 1 });
  }
  return stretches;
}
