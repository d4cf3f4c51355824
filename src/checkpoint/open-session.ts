/** Opens a session on the VM of an address. */

import { tmpdir } from 'node:os';

import { describeError } from '../errors.js';
import { makeHostKey } from '../host/host-key.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { sweepWorkFolders } from '../host/work-folder.js';
import type { AttachOptions } from '../hypervisor/hypervisor.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { Vm } from '../hypervisor/vm.js';
import type { SessionOptions } from './session-options.js';
import { CheckpointSession } from './session.js';

export interface OpenSessionOptions extends SessionOptions {
  /** Called with the attached VM before anything is locked or made. What it throws ends the opening. */
  readonly check?: ((vm: Vm) => Promise<void>) | undefined;
  /** How the adapter attaches to the VM. */
  readonly attach?: Omit<AttachOptions, 'runtimeDir' | 'signal'> | undefined;
}

/**
 * Attaches to the VM and opens a session, which closes the VM in the end.
 * @param address such as qmp:/run/web1.qmp
 * @throws VM_ADDRESS, VM_UNREACHABLE, VM_BUSY, VM_PERMISSION, and see `CheckpointSession.open`
 */
export async function openSession(
  hypervisors: HypervisorRegistry,
  address: string,
  { attach, check, ...options }: OpenSessionOptions,
): Promise<CheckpointSession> {
  const runtimeDir = await openRuntimeDir(options.runtimeDir ?? defaultRuntimeDir());
  await sweepWorkFolders(tmpdir());
  const { signal } = options;
  const vm = await hypervisors.forAddress(address).attach(address, { ...attach, runtimeDir, signal });
  try {
    await check?.(vm);
  } catch (error) {
    await vm.close();
    throw error;
  }
  return CheckpointSession.open(vm, { hostKey: await ownKey(), ...options, runtimeDir });
}

/** A checkpoint is worth having without it, too. */
async function ownKey(): Promise<Uint8Array | undefined> {
  try {
    return await makeHostKey();
  } catch (error) {
    process.emitWarning(
      `restores of these checkpoints will need --trust-machine, because they cannot be marked as this host's: ${describeError(error)}`,
    );
    return undefined;
  }
}
