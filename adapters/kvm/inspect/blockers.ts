/**
 * What keeps the device state of a VM from being asked for: QEMU's own reasons against a migration, and what
 * QEMU finds out only while it saves, which would be in the pause.
 */

import { isCheckpointError } from '../../../src/errors.js';
import type { Json } from '../../../src/types.js';
import { listAddedDevices, type AddedDevice } from '../../qemu/added-devices.js';
import { blockersOf } from '../../qemu/migration-blockers.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asObject, asText } from '../../qemu/qmp-json.js';

/**
 * Since 8.2 QEMU migrates a virtiofs share whose daemon hands its state on, and asks the daemon only when it
 * saves (hw/virtio/vhost-user-fs.c, vuf_check_migration_support). 7.2 lists the device as unmigratable.
 */
const VIRTIO_FS = /^vhost-user-fs(-|$)/;
const DEVICE_STATE = 'VHOST_USER_PROTOCOL_F_DEVICE_STATE';

/**
 * Devices whose state QEMU 7.2 and 10.0 cannot save or load although nothing is said against it: `migrate` and
 * `xen-save-devices-state` alike end QEMU, or its restore does. Found by trying every device (docs/devices.md).
 */
const BROKEN: ReadonlyMap<string, string> = new Map([
  // Its description has four ports, of which two are there (hw/char/serial-pci-multi.c).
  ['pci-serial-2x', 'QEMU dies when it saves the state of pci-serial-2x'],
  ['vmbus-bridge', 'QEMU dies when it saves the state of vmbus-bridge'],
  ['sd-card-spi', 'QEMU dies when it loads the state of sd-card-spi'],
  ['isa-cirrus-vga', 'QEMU dies when it loads the state of isa-cirrus-vga'],
]);

/** Asked while the VM runs. @returns reasons in words for the operator @throws VM_GONE, QMP_TIMEOUT */
export async function findBlockers(monitor: Monitor): Promise<readonly string[]> {
  const [migration, devices] = await Promise.all([
    monitor.execute('query-migrate'),
    listAddedDevices(monitor),
  ]);
  return allBlockers(monitor, migration, devices);
}

/** The same for a reply of query-migrate and a list of devices that are there already. */
export async function allBlockers(
  monitor: Monitor,
  migration: Json,
  devices: readonly AddedDevice[],
): Promise<readonly string[]> {
  const own = [...blockersOf(migration), ...devices.flatMap(({ type }) => BROKEN.get(type) ?? [])];
  const shares = devices.filter(({ type }) => VIRTIO_FS.test(type));
  if (own.length > 0 || shares.length === 0) return own;
  const answers = await Promise.all(
    shares.map(async ({ path, type }) => ((await handsStateOn(monitor, path)) ? [] : stateless(path, type))),
  );
  return answers.flat();
}

function stateless(path: string, type: string): string {
  return `the daemon behind ${type} (${path}) does not hand its state on`;
}

/** Whether the back end of a vhost-user device has agreed to. False when QEMU does not tell. */
async function handsStateOn(monitor: Monitor, path: string): Promise<boolean> {
  try {
    const status = await monitor.execute('x-query-virtio-status', { path: `${path}/virtio-backend` });
    const { protocols } = asObject(asObject(asObject(status)['vhost-dev'])['protocol-features']);
    if (!Array.isArray(protocols)) return false;
    return (protocols as readonly Json[]).some((protocol) => asText(protocol).startsWith(DEVICE_STATE));
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return false;
    throw error;
  }
}
