/**
 * A guest's physical memory as regions of the core.
 *
 * A PVH guest of 128 MiB uses frames 0 to 0x8000 and a few special pages just below 4 GiB; what lies between
 * is nothing. So the frames in use are covered by windows, each a region with the id `gfn-HEX` (its first
 * frame). A window is wide enough to stay the same while the guest balloons: whole 2 MiB blocks, small gaps
 * bridged, and from frame 0 on as much as the guest may ever have. Pages of a window without memory behind
 * them are reported as absent.
 */

import { CheckpointError } from '../../../src/errors.js';
import { layOut, type MemoryLayout, type MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

export interface FrameWindow {
  readonly firstFrame: number;
  readonly frameCount: number;
}

const BLOCK_FRAMES = 512;
/** Gaps up to 16 MiB are bridged: a ballooned guest must not fall into thousands of regions. */
const BRIDGED_FRAMES = 4096;
/** Guest memory that does not fit below this frame continues at 4 GiB: the space between is for devices. */
const LOW_END_FRAME = 0xf0000;
const HIGH_START_FRAME = 0x100000;

/** Windows over `present` stretches (ascending) and over what a guest of `maxPages` may grow to. */
export function windowsOver(present: readonly FrameWindow[], maxPages: number): readonly FrameWindow[] {
  const wanted: FrameWindow[] = [
    ...present,
    { firstFrame: 0, frameCount: Math.min(maxPages, LOW_END_FRAME) },
  ];
  if (maxPages > LOW_END_FRAME) {
    wanted.push({ firstFrame: HIGH_START_FRAME, frameCount: maxPages - LOW_END_FRAME });
  }
  return mergeWindows(wanted);
}

/** The union, in whole blocks, small gaps bridged, ascending. */
export function mergeWindows(windows: readonly FrameWindow[]): readonly FrameWindow[] {
  const blocks = windows
    .filter(({ frameCount }) => frameCount > 0)
    .map(({ firstFrame, frameCount }) => ({
      from: Math.floor(firstFrame / BLOCK_FRAMES) * BLOCK_FRAMES,
      to: Math.ceil((firstFrame + frameCount) / BLOCK_FRAMES) * BLOCK_FRAMES,
    }))
    .sort((a, b) => a.from - b.from);
  const merged: { from: number; to: number }[] = [];
  for (const block of blocks) {
    const last = merged.at(-1);
    if (last !== undefined && block.from - last.to <= BRIDGED_FRAMES) last.to = Math.max(last.to, block.to);
    else merged.push({ ...block });
  }
  return merged.map(({ from, to }) => ({ firstFrame: from, frameCount: to - from }));
}

export function layoutOf(windows: readonly FrameWindow[]): MemoryLayout {
  return layOut(
    windows.map(({ firstFrame, frameCount }) => ({
      id: `gfn-${firstFrame.toString(16)}`,
      sizeBytes: frameCount * PAGE_SIZE_BYTES,
    })),
  );
}

/**
 * First guest frame of a region made by `layoutOf`.
 * @throws VM_UNSUPPORTED for a region of another hypervisor
 */
export function firstFrameOf(region: Pick<MemoryRegion, 'id'>): number {
  const hex = /^gfn-([0-9a-f]+)$/.exec(region.id)?.[1];
  if (hex !== undefined) return Number.parseInt(hex, 16);
  throw new CheckpointError('VM_UNSUPPORTED', `memory region ${region.id} is none of a Xen guest`);
}

/** Undefined when the frame is in none of the regions. */
export function pageOfFrame(layout: MemoryLayout, frame: number): number | undefined {
  for (const region of layout.regions) {
    const offset = frame - firstFrameOf(region);
    if (offset >= 0 && offset < region.pageCount) return region.firstPage + offset;
  }
  return undefined;
}
