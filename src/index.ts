/** Cairn as a library. The CLI is a thin layer on what is exported here. */

import { DISK_DRIVERS } from '../adapters/disks/disk-drivers.js';
import type { DiskDriverKind } from '../adapters/disks/disk-means.js';
import { kvmHypervisor } from '../adapters/kvm/kvm-hypervisor.js';
import { libvirtHypervisor } from '../adapters/libvirt/libvirt-hypervisor.js';
import { xenHypervisor } from '../adapters/xen/xen-hypervisor.js';
import { HypervisorRegistry } from './hypervisor/registry.js';

/** The hypervisors Cairn comes with. */
export function hypervisors(): HypervisorRegistry {
  return new HypervisorRegistry([kvmHypervisor, libvirtHypervisor, xenHypervisor]);
}

/** The disk drivers Cairn comes with, in the order in which a checkpoint prefers them. */
export function diskDriverKinds(): readonly DiskDriverKind[] {
  return DISK_DRIVERS;
}

export { openSession, type OpenSessionOptions } from './checkpoint/open-session.js';
export { CheckpointSession, type CheckpointOptions, type SessionOptions } from './checkpoint/session.js';
export type { PhaseTimes } from './checkpoint/pause/captured.js';
export type { CheckpointProgress } from './checkpoint/progress.js';
export type { CheckpointSummary } from './checkpoint/summary.js';
export { CheckpointError, isCheckpointError, type ErrorCode } from './errors.js';
export type { Hypervisor } from './hypervisor/hypervisor.js';
export type { RestoreRequest, RestoreResult } from './hypervisor/restore.js';
export type { RestoreOption, RestoreSettings } from './hypervisor/restore-options.js';
export { HypervisorRegistry } from './hypervisor/registry.js';
export type { Vm, VmReport } from './hypervisor/vm.js';
export { Calendar, parseDuration } from './repository/forget/calendar.js';
export {
  forget,
  type ForgetChoice,
  type ForgetOptions,
  type ForgetResult,
} from './repository/forget/forget.js';
export type { KeepPolicy } from './repository/forget/keep-policy.js';
export type { Manifest } from './format/manifest.js';
export { Repository } from './repository/repository.js';
export { verify } from './repository/verify/verify.js';
export { importCheckpoint, type ImportOptions } from './intake/import.js';
export {
  receiveCheckpoints,
  type ReceivedCheckpoint,
  type ReceiveOptions,
  type ReceiveResult,
} from './intake/receive.js';
export { exportCheckpoint, restoreCheckpoint, type RestoreCall } from './restore/restore.js';
export type { ForkedVm } from './hypervisor/fork.js';
export { endForks } from './restore/fork/end-forks.js';
export { forkVm, type ForkVmOptions, type ForkVmResult } from './restore/fork/fork-vm.js';
export {
  forkCheckpoint,
  type ForEachFork,
  type ForkOptions,
  type ForkPhase,
  type ForkResult,
} from './restore/fork/fork.js';
export { rewindVm, type RewindVmOptions } from './rewind/rewind-vm.js';
export { rewind, type RewindOptions, type RewindResult } from './rewind/rewind.js';
export type { StorageBackend } from './storage/backend.js';
export { openBackend, openStorage } from './storage/open.js';
