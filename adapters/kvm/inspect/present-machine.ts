/**
 * The machine as it is now, held against its command line: a checkpoint is restored by that, so what came or went
 * since QEMU was started has to be said beside it, or the checkpoint is refused. Asked before each checkpoint.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { VmHazard } from '../../../src/hypervisor/vm.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { parseCommandLine, valueOf, type QemuOption } from '../../disks/qcow2/command-line.js';
import { listAddedDevices, type AddedDevice } from '../../qemu/added-devices.js';
import type { Monitor } from '../../qemu/monitor.js';
import { listPresentDisks, pairDisks, type DiskPicture, type PresentDisk } from './present-disks.js';

const PERIPHERAL = '/machine/peripheral/';
const ANONYMOUS = '/machine/peripheral-anon/';
const MACHINE_CHANGED = 'MACHINE_CHANGED';
const REMEDY =
  'take checkpoints through the manager that made the change (libvirt:NAME), stop the VM and start it with what it has now, or pass --allow-changed-machine and restore into a QEMU of your own (--to)';

export class PresentMachine {
  readonly #monitor: Monitor;
  readonly #options: readonly QemuOption[];
  readonly #cwd: string;
  readonly #isAllowed: boolean;
  #disks: readonly PresentDisk[] | undefined;

  /**
   * @param machine as `machineFacts` has found it
   * @param isAllowed the operator sees to how it is restored
   */
  constructor(monitor: Monitor, { argv, cwd }: JsonObject, isAllowed = false) {
    this.#monitor = monitor;
    this.#isAllowed = isAllowed;
    this.#options = parseCommandLine(Array.isArray(argv) ? (argv as string[]).slice(1) : []);
    this.#cwd = typeof cwd === 'string' ? cwd : '/';
  }

  /** What a manifest records, as the last `check` has found it. */
  get record(): JsonObject {
    return this.#disks === undefined ? {} : { presentDisks: this.#disks as unknown as Json };
  }

  /** @throws VM_UNSUPPORTED, VM_GONE, QMP_TIMEOUT */
  async check(): Promise<void> {
    const { disks, problems } = await this.#look();
    this.#disks = disks;
    if (problems.length === 0 || this.#isAllowed) return;
    throw new CheckpointError('VM_UNSUPPORTED', `no checkpoint: ${changedText(problems)}`, {
      hint: REMEDY,
      detail: { hazard: MACHINE_CHANGED, problems: [...problems] },
    });
  }

  /**
   * The same for a report, which is also asked for after the pause: by then Cairn itself may have put overlays on
   * the disks, so the record stays as it is.
   * @throws VM_GONE, QMP_TIMEOUT
   */
  async hazards(): Promise<readonly VmHazard[]> {
    const { problems } = await this.#look();
    if (problems.length === 0) return [];
    const effect = this.#isAllowed ? 'note' : 'refuse';
    return [{ code: MACHINE_CHANGED, effect, text: changedText(problems), remedy: REMEDY }];
  }

  async #look(): Promise<DiskPicture> {
    const [found, devices] = await Promise.all([
      listPresentDisks(this.#monitor),
      listAddedDevices(this.#monitor),
    ]);
    const { disks, problems } = await pairDisks(found, this.#options, this.#cwd);
    const plugged = await pluggedDevices(this.#monitor, devices);
    return {
      disks,
      problems: [
        ...problems,
        ...plugged.map(({ path, type }) => `${type} (${nameOf(path)}) was plugged in while it ran`),
        ...unpluggedDevices(devices, this.#options),
      ],
    };
  }
}

function changedText(problems: readonly string[]): string {
  return `a restore goes by the command line, and the VM is not what that says any more: ${problems.join('; ')}`;
}

/** Those that came after the machine was complete. QEMU keeps that with each device. */
async function pluggedDevices(
  monitor: Monitor,
  devices: readonly AddedDevice[],
): Promise<readonly AddedDevice[]> {
  const isPlugged = await Promise.all(
    devices.map(({ path }) => monitor.execute('qom-get', { path, property: 'hotplugged' })),
  );
  return devices.filter((_, i) => isPlugged[i] === true);
}

/** Options whose device is not there. A device without an id can only be missed by their number. */
function unpluggedDevices(
  devices: readonly AddedDevice[],
  options: readonly QemuOption[],
): readonly string[] {
  const values = options.filter(({ name }) => name === 'device').map(({ value = '' }) => value);
  const ids = values.map(idOf);
  const isThere = new Set(devices.map(({ path }) => path));
  const gone = ids.flatMap((id) =>
    id === undefined || isThere.has(`${PERIPHERAL}${id}`) ? [] : `the device ${id} was unplugged`,
  );
  const unnamed = ids.filter((id) => id === undefined).length;
  const anonymous = devices.filter(({ path }) => path.startsWith(ANONYMOUS)).length;
  const missing = unnamed - anonymous;
  return missing > 0 ? [...gone, `${missing} of the devices without an id were unplugged`] : gone;
}

/** Of a -device in either of its two forms. */
function idOf(value: string): string | undefined {
  if (!value.startsWith('{')) return valueOf(value, 'id');
  return /"id"\s*:\s*"([^"]*)"/.exec(value)?.[1];
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
