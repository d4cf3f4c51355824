/** Attaches to the VM of an address `qmp:/path/to.sock`. */

import { resolve } from 'node:path';

import { CheckpointError } from '../../src/errors.js';
import type { AttachOptions } from '../../src/hypervisor/hypervisor.js';
import { refuseFilling } from './inspect/filling.js';
import { KvmVm } from './kvm-vm.js';
import { qemuBehind } from '../qemu/peer-process.js';
import { QmpClient } from '../qemu/qmp-client.js';
import { sweepRuntimeDir } from '../qemu/runtime-files.js';

const SCHEME = 'qmp:';

/** Absolute path of the socket. @throws VM_ADDRESS */
export function socketPathOf(address: string): string {
  const path = address.startsWith(SCHEME) ? address.slice(SCHEME.length) : '';
  if (path !== '') return resolve(path);
  throw new CheckpointError('VM_ADDRESS', `"${address}" is not the address of a QMP socket`, {
    hint: 'for example qmp:/run/web1.qmp',
  });
}

/** @throws VM_ADDRESS, VM_UNREACHABLE, VM_BUSY, VM_FILLING, VM_STATE, VM_PERMISSION, VM_UNSUPPORTED, VM_GONE, QMP_PROTOCOL */
export async function attachKvm(
  address: string,
  { runtimeDir, guestAgent, diskOptions, allowChangedMachine, signal }: AttachOptions,
): Promise<KvmVm> {
  const socketPath = socketPathOf(address);
  // Its monitor is taken as long as it is being filled, so it is not asked.
  await refuseFilling(runtimeDir, ({ vmAddress }) => vmAddress === `${SCHEME}${socketPath}`);
  const monitor = await QmpClient.connect(socketPath, { signal });
  try {
    await sweepRuntimeDir(runtimeDir);
    const process = await qemuBehind(monitor.descriptor, socketPath);
    await refuseFilling(runtimeDir, ({ vm }) => vm.pid === process.pid && vm.startTime === process.startTime);
    const agentPath = guestAgent === undefined ? undefined : resolve(guestAgent);
    return await KvmVm.attach(
      { address, runtimeDir, socketPath, agentPath, diskOptions, allowChangedMachine },
      { monitor, process },
    );
  } catch (error) {
    await monitor.close();
    throw error;
  }
}
