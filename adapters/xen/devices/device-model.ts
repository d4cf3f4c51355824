/**
 * The QEMU that emulates the devices of an HVM guest, through the monitor that libxl gave it.
 *
 * Its part in a checkpoint, in libxl's order: the guest suspends itself, QEMU is stopped (it finishes
 * requests in flight, and the hypervisor takes no more for it), its state is saved; then QEMU goes on first
 * and the guest after it.
 *
 * What QEMU writes to guest memory reaches the hypervisor's dirty bitmap only while its own global dirty log
 * is on. Whoever saves or migrates the domain switches that off in the end, and the hypervisor's bitmap right
 * before it (cleanup of tools/libs/guest/xg_sr_save.c), so a bitmap that has stayed on is proof for both: see
 * `log-dirty-tracker.ts`.
 *
 * The monitor serves one client at a time. It is held from before the stop until the guest runs again, so
 * that nobody stands between the guest and its resume, and otherwise for a single exchange.
 *
 * Sources: tools/libs/light/libxl_qmp.c and libxl_dom_suspend.c of Xen; softmmu/runstate.c,
 * hw/i386/xen/xen-hvm.c of QEMU.
 */

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { DeviceState } from '../../qemu/device-state.js';
import type { Monitor } from '../../qemu/monitor.js';
import { QmpClient } from '../../qemu/qmp-client.js';
import { asNumber, asObject, asText } from '../../qemu/qmp-json.js';

export type ConnectMonitor = (path: string) => Promise<Monitor>;
/** Does one exchange over a monitor, which is let go of afterwards. */
export type ExchangeWithMonitor = <T>(use: (monitor: Monitor) => Promise<T>) => Promise<T>;

export interface DeviceModelVersion {
  readonly major: number;
  readonly minor: number;
}

interface Held {
  readonly monitor: Monitor;
  readonly state: DeviceState;
}

export function monitorPath(domid: number): string {
  return `/var/run/xen/qmp-libxl-${domid}`;
}

export const connectMonitor: ConnectMonitor = (path) => QmpClient.connect(path);

export function exchangeAt(path: string, connect: ConnectMonitor): ExchangeWithMonitor {
  return async (use) => {
    const monitor = await connect(path);
    try {
      return await use(monitor);
    } finally {
      await monitor.close();
    }
  };
}

export class DeviceModel {
  readonly #path: string;
  readonly #connect: ConnectMonitor;
  #held: Held | undefined;

  constructor(domid: number, connect: ConnectMonitor = connectMonitor) {
    this.#path = monitorPath(domid);
    this.#connect = connect;
  }

  /** @throws VM_UNREACHABLE, VM_BUSY, VM_PERMISSION, QMP_COMMAND */
  async version(): Promise<DeviceModelVersion> {
    const reply = await this.exchange((monitor) => monitor.execute('query-version'));
    const { major, minor } = asObject(asObject(reply).qemu);
    return { major: asNumber(major), minor: asNumber(minor) };
  }

  /**
   * Has QEMU report its writes to the hypervisor's dirty bitmap. A second call does no harm (QEMU 7.2; older
   * ones must not be told twice).
   */
  async reportWrites(): Promise<void> {
    await this.exchange((monitor) => monitor.execute('xen-set-global-dirty-log', { enable: true }));
  }

  /**
   * Takes the monitor for a stop, with all that the stop needs of it.
   * @throws VM_UNREACHABLE, VM_BUSY, QMP_COMMAND
   */
  async hold(): Promise<void> {
    if (this.#held !== undefined) return;
    const monitor = await this.#connect(this.#path);
    try {
      this.#held = { monitor, state: await DeviceState.open(monitor) };
    } catch (error) {
      await monitor.close();
      throw error;
    }
  }

  /**
   * Stops the QEMU of the suspended guest: requests in flight are finished when this returns.
   * @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE
   */
  async stop(): Promise<void> {
    await this.#mustHold().monitor.execute('stop');
  }

  /**
   * The state of the stopped QEMU, as it serialises itself; caller owns the bytes.
   * @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE, STREAM_MALFORMED
   */
  async saveState(): Promise<Uint8Array> {
    const { state } = this.#mustHold();
    await state.save();
    return state.take();
  }

  /**
   * Goes on, whether it was stopped or not: to be called before the guest is resumed. A connection that is
   * lost is made anew.
   * @throws VM_BUSY, QMP_TIMEOUT, QMP_COMMAND; VM_UNREACHABLE when there is no QEMU any more
   */
  async resume(): Promise<void> {
    const held = this.#held?.monitor;
    if (held !== undefined) {
      try {
        await held.execute('cont');
        return;
      } catch (error) {
        if (!isCheckpointError(error, 'VM_GONE')) throw error;
      }
    }
    await resumeDeviceModel(this.#path, this.#connect);
  }

  /** Of the connection to the monitor that is held; undefined while none is. */
  get descriptor(): number | undefined {
    return this.#held?.monitor.descriptor;
  }

  /** Lets go of the monitor. */
  async release(): Promise<void> {
    const held = this.#held;
    this.#held = undefined;
    if (held === undefined) return;
    await held.state.close();
    await held.monitor.close();
  }

  /** Over the monitor that is held, if it is. @throws VM_UNREACHABLE, VM_BUSY, and what `use` throws */
  readonly exchange: ExchangeWithMonitor = (use) =>
    this.#held === undefined ? exchangeAt(this.#path, this.#connect)(use) : use(this.#held.monitor);

  #mustHold(): Held {
    if (this.#held === undefined) throw new RangeError('hold() comes first');
    return this.#held;
  }
}

/**
 * What the guard process and the recovery after a crash do as well.
 * @throws VM_BUSY, QMP_TIMEOUT, QMP_COMMAND; VM_UNREACHABLE when there is no QEMU any more
 */
export async function resumeDeviceModel(
  path: string,
  connect: ConnectMonitor = connectMonitor,
): Promise<void> {
  const monitor = await connect(path);
  try {
    await monitor.execute('cont');
    const { status } = asObject(await monitor.execute('query-status'));
    if (status === 'running') return;
    throw new CheckpointError('VM_NOT_RESUMED', `the QEMU at ${path} is ${asText(status)} after its resume`);
  } finally {
    await monitor.close();
  }
}

/**
 * Why a device model cannot be used, in words; empty for one that can.
 * @throws VM_BUSY while another client has its monitor
 */
export async function deviceModelProblem(
  model: Pick<DeviceModel, 'version'>,
  allowsUnproven: boolean,
): Promise<string> {
  let found: DeviceModelVersion;
  try {
    found = await model.version();
  } catch (error) {
    if (isCheckpointError(error, 'VM_BUSY')) throw error;
    return `the QEMU of the guest does not answer: ${describeError(error)}`;
  }
  const { major, minor } = found;
  if (major === PROVEN_QEMU.major && minor === PROVEN_QEMU.minor) return '';
  const isOlder = major < PROVEN_QEMU.major || (major === PROVEN_QEMU.major && minor < PROVEN_QEMU.minor);
  if (allowsUnproven && !isOlder) return '';
  return `the guest has QEMU ${major}.${minor}, and checkpoints were tried with ${PROVEN_QEMU.major}.${PROVEN_QEMU.minor} only`;
}

/**
 * Debian 12's. Some before 7.2 end when they are told twice to report writes, and would take the guest along.
 */
const PROVEN_QEMU: DeviceModelVersion = { major: 7, minor: 2 };
