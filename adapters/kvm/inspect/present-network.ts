/**
 * Network back ends that went while their card stayed: QEMU deletes one below a plugged card (netdev_del), and nothing
 * connects that card again. A restore would start with it connected. Another back end cannot take the place: the
 * property of the card is fixed, and one of the same name stays without a card.
 *
 *     nic0: index=0,type=nic,model=virtio-net-pci,macaddr=...
 *      \ n0: index=0,type=user,...                 also shown after n0 was deleted
 *     n0: index=0,type=user,...                    another one of that name, without a card
 *
 * Tried on QEMU 7.2 and 10.0. Whether the one below is still there is told by the refusal of a command that can only be
 * refused: netdev_add of a socket that is given nowhere to go.
 */

import { isCheckpointError } from '../../../src/errors.js';
import { humanCommand, type Monitor } from '../../qemu/monitor.js';

const NOWHERE = 'exactly one of';

/** @returns what differs, in words for the operator @throws VM_GONE, QMP_TIMEOUT */
export async function changedNetwork(monitor: Monitor): Promise<readonly string[]> {
  const { connected, loose } = netdevsIn(await networkInfo(monitor));
  const gone = await Promise.all(
    [...connected].map(async ([netdev, nic]) =>
      loose.has(netdev) || (await isDeleted(monitor, netdev))
        ? [`the netdev ${netdev} of ${nic} was deleted`]
        : [],
    ),
  );
  return gone.flat();
}

async function networkInfo(monitor: Monitor): Promise<string> {
  try {
    return await humanCommand(monitor, 'info network');
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return '';
    throw error;
  }
}

export interface Netdevs {
  /** Names of netdevs, with the card that each is shown below. */
  readonly connected: ReadonlyMap<string, string>;
  /** Names of what has no card. */
  readonly loose: ReadonlySet<string>;
}

/** A text of `info network`. What is behind a hub is left out. */
export function netdevsIn(text: string): Netdevs {
  const connected = new Map<string, string>();
  const loose = new Set<string>();
  let nic: string | undefined;
  for (const line of text.split(/\r?\n/)) {
    const [, below, name = '', type] = /^( \\ )?([^:]+): index=\d+,type=([^,]*)/.exec(line) ?? [];
    if (below !== undefined) {
      if (nic !== undefined) connected.set(name, nic);
      continue;
    }
    nic = type === 'nic' ? name : undefined;
    if (type !== undefined && type !== 'nic') loose.add(name);
  }
  return { connected, loose };
}

/** Nothing is changed by it, whatever the answer is. */
async function isDeleted(monitor: Monitor, id: string): Promise<boolean> {
  // Names of QEMU's own, as of -nic, are none that it would take.
  if (!/^[A-Za-z][\w.-]*$/.test(id)) return false;
  try {
    await monitor.execute('netdev_add', { type: 'socket', id });
    return false;
  } catch (error) {
    if (!isCheckpointError(error, 'QMP_COMMAND')) throw error;
    return error.message.includes(NOWHERE);
  }
}
