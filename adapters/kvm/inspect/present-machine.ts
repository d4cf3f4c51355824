/**
 * The machine as it is now, held against its command line: a checkpoint is restored by that, so what came or went
 * since QEMU was started has to be said beside it, or the checkpoint is refused. Asked before each checkpoint.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { VmHazard } from '../../../src/hypervisor/vm.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { parseCommandLine, type QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf } from '../../disks/qcow2/option-fields.js';
import { listAddedDevices, type AddedDevice } from '../../qemu/added-devices.js';
import type { Monitor } from '../../qemu/monitor.js';
import { imagesElsewhere } from './open-images.js';
import { changedChardevs } from './present-chardevs.js';
import { listPresentDisks, pairDisks, type PresentDisk } from './present-disks.js';
import { changedNetwork } from './present-network.js';
import { presentObjects, type PresentObject } from './present-objects.js';

const PERIPHERAL = '/machine/peripheral/';
const ANONYMOUS = '/machine/peripheral-anon/';
const MACHINE_CHANGED = 'MACHINE_CHANGED';
const REMEDY =
  'take checkpoints through the manager that made the change (libvirt:NAME), stop the VM and start it with what it has now, or pass --allow-changed-machine and restore into a QEMU of your own (--to)';
/** Its images are not where it says. */
const IMAGES_ELSEWHERE = 'IMAGES_ELSEWHERE';
const ELSEWHERE_REMEDY =
  'run cairn where QEMU finds its files (nsenter --target PID --mount), or put the image back at its place; --allow-changed-machine takes the checkpoint all the same, for a restore into a QEMU of your own (--to)';

/** Its command line has bytes that no manifest can hold. */
const NOT_UTF8 = 'NOT_UTF8';
const NOT_UTF8_REMEDY =
  'rename that file and start the VM anew, or pass --allow-changed-machine and restore into a QEMU of your own (--to)';
/** What decoding puts in the place of bytes that are no UTF-8. */
const REPLACEMENT = '\uFFFD';

interface Picture {
  readonly disks: readonly PresentDisk[];
  readonly objects: readonly PresentObject[];
  readonly hazards: readonly VmHazard[];
}

export class PresentMachine {
  readonly #monitor: Monitor;
  readonly #pid: number;
  readonly #options: readonly QemuOption[];
  readonly #cwd: string;
  readonly #isAllowed: boolean;
  #found: Pick<Picture, 'disks' | 'objects'> | undefined;

  /**
   * @param machine as `machineFacts` has found it
   * @param isAllowed the operator sees to how it is restored
   */
  constructor(monitor: Monitor, pid: number, { argv, cwd }: JsonObject, isAllowed = false) {
    this.#monitor = monitor;
    this.#pid = pid;
    this.#isAllowed = isAllowed;
    this.#options = parseCommandLine(Array.isArray(argv) ? (argv as string[]).slice(1) : []);
    this.#cwd = typeof cwd === 'string' ? cwd : '/';
  }

  /** What a manifest records, as the last `check` has found it. */
  get record(): JsonObject {
    if (this.#found === undefined) return {};
    const { disks, objects } = this.#found;
    return { presentDisks: disks as unknown as Json, presentObjects: objects as unknown as Json };
  }

  /**
   * @param monitor of the look that this is a part of
   * @throws VM_UNSUPPORTED, VM_GONE, QMP_TIMEOUT
   */
  async check(monitor = this.#monitor): Promise<void> {
    const { disks, objects, hazards } = await this.#look(monitor);
    this.#found = { disks, objects };
    const refusing = hazards.find(({ effect }) => effect === 'refuse');
    if (refusing === undefined) return;
    throw new CheckpointError('VM_UNSUPPORTED', `no checkpoint: ${refusing.text}`, {
      ...(refusing.remedy === undefined ? {} : { hint: refusing.remedy }),
      detail: { hazard: refusing.code },
    });
  }

  /**
   * The same for a report, which is also asked for after the pause: by then Cairn itself may have put overlays on
   * the disks, so the record stays as it is.
   * @throws VM_GONE, QMP_TIMEOUT
   */
  async hazards(monitor = this.#monitor): Promise<readonly VmHazard[]> {
    return (await this.#look(monitor)).hazards;
  }

  async #look(monitor: Monitor): Promise<Picture> {
    const [found, devices] = await Promise.all([listPresentDisks(monitor), listAddedDevices(monitor)]);
    const [{ disks, problems }, plugged, { objects, problems: objectProblems }, chardevs, network] =
      await Promise.all([
        pairDisks(found, this.#options, this.#cwd),
        pluggedDevices(monitor, devices),
        presentObjects(monitor, this.#options),
        changedChardevs(monitor, this.#options, { pid: this.#pid, cwd: this.#cwd }),
        changedNetwork(monitor),
      ]);
    const changes = [
      ...problems,
      ...plugged.map(({ path, type }) => `${type} (${nameOf(path)}) was plugged in while it ran`),
      ...unpluggedDevices(devices, this.#options),
      ...objectProblems,
      ...chardevs,
      ...network,
    ];
    // QEMU has removed the name of an image of -snapshot: nobody finds it, nor needs to.
    const temporary = new Set(disks.flatMap((disk) => (disk.temporary === true ? [disk.device] : [])));
    const named = found.map((disk) => (temporary.has(disk.device) ? { ...disk, path: '' } : disk));
    const elsewhere = await imagesElsewhere(this.#pid, named, this.#cwd);
    const hazard = (code: string, text: string, remedy: string): VmHazard => ({
      code,
      effect: this.#isAllowed ? 'note' : 'refuse',
      text,
      remedy,
    });
    return {
      disks,
      objects,
      hazards: [
        ...this.#options
          .filter(({ value }) => value?.includes(REPLACEMENT) === true)
          .map(({ spelling, value = '' }) =>
            hazard(
              NOT_UTF8,
              `not all of ${spelling} ${value} is UTF-8, so it cannot be recorded`,
              NOT_UTF8_REMEDY,
            ),
          ),
        ...(elsewhere.length === 0 ? [] : [hazard(IMAGES_ELSEWHERE, elsewhere.join('; '), ELSEWHERE_REMEDY)]),
        ...(changes.length === 0 ? [] : [hazard(MACHINE_CHANGED, changedText(changes), REMEDY)]),
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
  const ids = values.map((value) => fieldOf(value, 'id'));
  const isThere = new Set(devices.map(({ path }) => path));
  const gone = ids.flatMap((id) =>
    id === undefined || isThere.has(`${PERIPHERAL}${id}`) ? [] : `the device ${id} was unplugged`,
  );
  const unnamed = ids.filter((id) => id === undefined).length;
  const anonymous = devices.filter(({ path }) => path.startsWith(ANONYMOUS)).length;
  const missing = unnamed - anonymous;
  return missing > 0 ? [...gone, `${missing} of the devices without an id were unplugged`] : gone;
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
