/**
 * The device state of a QEMU as the core sees it: opened once, before the first pause, and used for all that
 * follow.
 */

import type { VmDeviceState } from '../../../src/hypervisor/device-state.js';
import { askedOnce } from '../../qemu/asked-once.js';
import { DeviceState } from '../../qemu/device-state.js';
import { refuseBlocked } from '../../qemu/migration-blockers.js';
import { findBlockers } from '../inspect/blockers.js';
import type { PresentMachine } from '../inspect/present-machine.js';
import type { Monitor } from '../../qemu/monitor.js';

export interface PauseRules {
  /** Throws when the pause was taken away. */
  readonly mustHold?: () => void;
  /** Throws when the VM is of no moment. */
  readonly mayBegin?: () => void;
}

export class KvmDeviceState implements VmDeviceState {
  readonly #monitor: Monitor;
  readonly #machine: PresentMachine | undefined;
  readonly #pause: PauseRules;
  #opening: Promise<DeviceState> | undefined;
  /** The same once it is there. */
  #open: DeviceState | undefined;
  #savesUnderWay = 0;

  /**
   * @param machine where a restore goes by the command line, and it has to be the machine's own
   */
  constructor(monitor: Monitor, machine?: PresentMachine, pause: PauseRules = {}) {
    this.#monitor = monitor;
    this.#machine = machine;
    this.#pause = pause;
  }

  /** QEMU is writing it, and may write to guest memory on the way. */
  get isBeingSaved(): boolean {
    return this.#savesUnderWay > 0;
  }

  /** @throws REWIND_UNFINISHED, VM_UNSUPPORTED for a VM that QEMU would not migrate or its command line not start, VM_GONE, QMP_TIMEOUT */
  async check(): Promise<void> {
    this.#pause.mayBegin?.();
    const monitor = askedOnce(this.#monitor);
    const machine = this.#machine?.check(monitor);
    // Waited for below: what QEMU itself says comes first.
    machine?.catch(() => undefined);
    refuseBlocked(await findBlockers(monitor));
    await machine;
  }

  /** What `save` needs is there. @throws FFI_FAILED, QMP_COMMAND, VM_GONE */
  async ready(): Promise<void> {
    await this.#ready();
  }

  /**
   * Does in the background what `ready` does. A failure shows again, and is reported, when the pause needs
   * it.
   */
  prepare(): void {
    this.#ready().catch(() => (this.#opening = undefined));
  }

  /** @throws PAUSE_LIMIT when the guard has taken the pause away */
  async save(): Promise<void> {
    // An open channel is used without a wait, so that QEMU is at work already while the caller goes on with
    // the harvest.
    const devices = this.#open ?? (await this.#ready());
    // QEMU would stop a VM that runs by now for as long as it writes. libvirt lets the command through.
    this.#pause.mustHold?.();
    this.#savesUnderWay++;
    try {
      await devices.save();
    } finally {
      this.#savesUnderWay--;
    }
  }

  async take(): Promise<Uint8Array> {
    return (await this.#ready()).take();
  }

  async close(): Promise<void> {
    const devices = await this.#opening?.catch(() => undefined);
    this.#opening = undefined;
    this.#open = undefined;
    await devices?.close();
  }

  #ready(): Promise<DeviceState> {
    this.#opening ??= DeviceState.open(this.#monitor).then((open) => (this.#open = open));
    return this.#opening;
  }
}
