/**
 * The device state of a suspended domain: the hypervisor's records, the list of present frames, and the
 * device model's own.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { VmDeviceState } from '../../../src/hypervisor/device-state.js';
import type { DeviceModel } from '../devices/device-model.js';
import type { XenDomain } from '../domain/domain.js';
import { memoryTargetOf } from '../domain/memory-target.js';
import { framesOf, type GuestMemory } from '../memory/guest-memory.js';
import type { KnownXenMemory } from '../memory/xen-memory.js';
import { encodeDeviceState } from '../stream/device-state.js';

export interface XenDeviceStateDeps {
  readonly domain: XenDomain;
  readonly guest: GuestMemory;
  readonly known: () => KnownXenMemory;
  /** The device model of an HVM guest. */
  readonly deviceModel: DeviceModel | undefined;
  /** Memory of the domain that is the device model's, in KiB. */
  readonly videoKib: number;
}

export class XenDeviceState implements VmDeviceState {
  readonly #deps: XenDeviceStateDeps;
  #memoryTarget: number | undefined;
  #saved: Uint8Array | undefined;

  constructor(deps: XenDeviceStateDeps) {
    this.#deps = deps;
  }

  /** The memory target at the last stop, in KiB. */
  get memoryTarget(): number | undefined {
    return this.#memoryTarget;
  }

  /** What has no state to save is refused by the domain's configuration: see `device-model-hazards.ts`. */
  check(): Promise<void> {
    return Promise.resolve();
  }

  /**
   * State records and the list of present frames of the suspended guest. Writes nothing to guest memory.
   * @throws VM_STATE when the guest is not suspended, or has memory outside of the known regions
   */
  async save(): Promise<void> {
    const { domain, guest, known, deviceModel, videoKib } = this.#deps;
    const info = domain.info();
    if (!info.isSuspended) {
      throw new CheckpointError('VM_STATE', `domain ${domain.domid} is not suspended`, { retryable: true });
    }
    const { layout, scan } = known();
    const present = scan.present();
    if (present.count() < info.totalPages) {
      throw new CheckpointError(
        'VM_STATE',
        `domain ${domain.domid} has ${info.totalPages} pages, of which ${present.count()} were found`,
        { hint: 'its memory map changed during the checkpoint; the next one looks again', retryable: true },
      );
    }
    this.#memoryTarget = memoryTargetOf(domain, videoKib);
    const state = guest.captureState(framesOf(layout, present));
    const emulator = await deviceModel?.saveState();
    this.#saved = encodeDeviceState(emulator === undefined ? state : { ...state, emulator });
  }

  take(): Promise<Uint8Array> {
    const state = this.#saved;
    this.#saved = undefined;
    if (state === undefined) {
      return Promise.reject(
        new CheckpointError('VM_STATE', 'no device state was saved, or it was taken already'),
      );
    }
    return Promise.resolve(state);
  }
}
