/**
 * Says where pages come from: the regions of a VM as they are now, who tells which changed, who reads them.
 */

import type { DirtyTracker } from '../../hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Vm } from '../../hypervisor/vm.js';
import type { SharePool } from '../../pool/share-pool.js';
import type { PoolSizing } from './open-pool.js';
import { chooseTracker } from '../trust/tracker-choice.js';

export interface PageSource {
  readonly layout: MemoryLayout;
  /** Fingerprint of the regions and of where a reader finds them. */
  readonly fingerprint: string;
  readonly tracker: DirtyTracker;
  readonly reason: string;
  readonly pool: SharePool;
}

export interface PageSourceOptions extends PoolSizing {
  /** `auto`, or the kind to insist on. Default `auto`. */
  readonly tracker?: string | undefined;
}

/**
 * @param pool fresh, the caller's until this has returned
 * @throws TRACKER_UNAVAILABLE, and what the VM throws
 */
export async function openSource(vm: Vm, options: PageSourceOptions, pool: SharePool): Promise<PageSource> {
  const layout = await vm.memory.layout();
  const { tracker, reason } = await chooseTracker(vm, options.tracker ?? 'auto');
  try {
    const reader = readerOf(vm, tracker);
    pool.open(reader);
    return { layout, fingerprint: fingerprintOf(layout, reader), tracker, reason, pool };
  } catch (error) {
    tracker.close();
    throw error;
  }
}

/** Equal as long as every region has the same id and size and is read from the same place. */
export async function fingerprint(vm: Vm, tracker: DirtyTracker): Promise<string> {
  return fingerprintOf(await vm.memory.layout(), readerOf(vm, tracker));
}

/** Pages are read from the picture where the hypervisor sends one, otherwise from the VM. */
function readerOf(vm: Vm, tracker: DirtyTracker): GuestReaderDescription {
  return tracker.traits.picture?.reader() ?? vm.memory.reader();
}

function fingerprintOf(layout: MemoryLayout, reader: GuestReaderDescription): string {
  return JSON.stringify([layout, reader]);
}
