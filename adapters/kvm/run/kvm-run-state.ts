/**
 * The run state of a QEMU as the core sees it, and what trackers must know of it: whether this process holds
 * the VM still.
 */

import type { PauseRequest, RunState, VmRunState } from '../../../src/hypervisor/run-state.js';
import type { JsonObject } from '../../../src/types.js';
import type { QuietVm } from '../trackers/quiet-vm.js';
import type { KvmDeviceState } from './kvm-device-state.js';
import type { RunStateControl } from './run-state.js';

export class KvmRunState implements VmRunState {
  readonly #control: RunStateControl;
  readonly #devices: KvmDeviceState;
  /** This process holds the VM paused. */
  #isHeld = false;
  #disturbances = 0;

  constructor(control: RunStateControl, devices: KvmDeviceState) {
    this.#control = control;
    this.#devices = devices;
  }

  read(): Promise<RunState> {
    return this.#control.read();
  }

  prepare(): void {
    this.#control.prepare().catch(() => undefined);
  }

  async pause(request: PauseRequest = {}): Promise<boolean> {
    // Not in the pause, where it would be found out otherwise that it cannot be had.
    await this.#devices.ready();
    this.#isHeld = await this.#control.pause({ ...request, savesDevices: true });
    return this.#isHeld;
  }

  async resume(running?: () => void): Promise<void> {
    this.#isHeld = false;
    try {
      await this.#control.resume(running);
    } catch (error) {
      this.#disturbances++;
      throw error;
    }
  }

  /** A pause in which QEMU is not asked for its device state. */
  async pauseToRewind(request: PauseRequest): Promise<boolean> {
    this.#isHeld = await this.#control.pause(request);
    return this.#isHeld;
  }

  /** See `RunStateControl.beginRewind`. From here on this process holds the VM, whoever has paused it. */
  async beginRewind(note: JsonObject): Promise<void> {
    await this.#control.beginRewind(note);
    this.#isHeld = true;
  }

  /** See `RunStateControl.endRewind`; then the VM runs, or is nobody's. */
  async endRewind(runs: boolean, running?: () => void): Promise<void> {
    await this.#control.endRewind(runs);
    if (runs) await this.resume(running);
    this.#isHeld = false;
  }

  quiet(): QuietVm {
    return {
      isHeld: () => this.#isHeld,
      disturbances: () => this.#disturbances,
      isQuiet: () => this.#isHeld && !this.#devices.isBeingSaved,
      whileQuiet: async (work) => {
        if (this.#isHeld) return work();
        this.#isHeld = await this.#control.pause();
        try {
          return work();
        } finally {
          if (this.#isHeld) await this.resume();
        }
      },
    };
  }
}
