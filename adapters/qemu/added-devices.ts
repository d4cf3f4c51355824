/** The devices that -device and device_add have added to a machine, in QEMU's object model. */

import { isCheckpointError } from '../../src/errors.js';
import type { Monitor } from './monitor.js';
import { asArray, asText } from './qmp-json.js';

export interface AddedDevice {
  /** Path of the object. */
  readonly path: string;
  /** Its QOM type, such as virtio-net-pci. */
  readonly type: string;
}

/** @throws VM_GONE, QMP_TIMEOUT */
export async function listAddedDevices(monitor: Monitor): Promise<readonly AddedDevice[]> {
  const lists = await Promise.all(
    ['/machine/peripheral', '/machine/peripheral-anon'].map(async (container) =>
      (await childrenOf(monitor, container)).flatMap(({ name, type }) => {
        const child = /^child<(.+)>$/.exec(asText(type))?.[1];
        return child === undefined ? [] : { path: `${container}/${asText(name)}`, type: child };
      }),
    ),
  );
  return lists.flat();
}

/** A machine without that container has no such devices. */
async function childrenOf(monitor: Monitor, path: string): Promise<ReturnType<typeof asArray>> {
  try {
    return asArray(await monitor.execute('qom-list', { path }));
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return [];
    throw error;
  }
}
