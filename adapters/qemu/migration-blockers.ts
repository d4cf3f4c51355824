/**
 * Why QEMU would not migrate its VM, as it says itself.
 *
 * `query-migrate` lists in `blocked-reasons` what its `migrate` goes by: devices whose state is declared
 * unmigratable, and what a device, a back end or an image format holds against it, such as a 9p share that the
 * guest has mounted. It does so at any time, also when there never was a migration (migration/migration.c,
 * fill_source_migration_info; seen on 7.2 and 10.0). `xen-save-devices-state` does not look at it: where a
 * device has no description of its state, QEMU dies of it.
 */

import { CheckpointError } from '../../src/errors.js';
import type { Json } from '../../src/types.js';
import { asObject, clipped } from './qmp-json.js';

/** Code of the hazard, and in the detail of the error. */
export const MIGRATION_BLOCKED = 'MIGRATION_BLOCKED';

const MAX_REASONS = 16;
const MAX_REASON_LENGTH = 300;
const UNREADABLE = 'a reason that is not text';

/** What to do about reasons that are met often; QEMU's texts name the device by its type. */
const REMEDIES: readonly (readonly [reason: RegExp, remedy: string])[] = [
  [/\bnvme\b/, 'give the disk to the guest as virtio-blk or virtio-scsi'],
  [/usb-uas|\buas\b/, 'give the disk to the guest as usb-storage or virtio-scsi'],
  [/VirtFS export path/, 'unmount the share in the guest for as long as the checkpoint takes'],
  [/vhost-user-fs/, 'detach the virtiofs share, or share by NFS'],
  [/ivshmem/, 'make this VM the master of the shared memory (master=on), or detach it'],
  [/invtsc/, 'start the VM without the CPU feature invtsc'],
  [/pci-serial-2x/, 'give it pci-serial-4x, or pci-serial twice'],
  [/isa-cirrus-vga/, 'give it cirrus-vga, or isa-vga'],
  [/format used by node/, 'convert the image to qcow2 or raw'],
];
const OTHER_REMEDY =
  'detach that device, or start the VM without that option; then QEMU could migrate it as well';

/** The reasons in a reply of query-migrate; none when QEMU would migrate the VM. */
export function blockersOf(migration: Json): readonly string[] {
  const reasons = asObject(migration)['blocked-reasons'];
  if (reasons === undefined) return [];
  if (!Array.isArray(reasons)) return [UNREADABLE];
  return (reasons as readonly Json[])
    .slice(0, MAX_REASONS)
    .map((reason) => (typeof reason === 'string' ? clipped(reason, MAX_REASON_LENGTH) : UNREADABLE));
}

/** What all reasons together come to, in words for the operator. */
export function blockedText(reasons: readonly string[]): string {
  return `QEMU itself would not migrate this VM: ${reasons.join('; ')}`;
}

export function remedyFor(reasons: readonly string[]): string {
  const remedies = reasons.map(
    (reason) => REMEDIES.find(([pattern]) => pattern.test(reason))?.[1] ?? OTHER_REMEDY,
  );
  return [...new Set(remedies)].join('; ');
}

/** @throws VM_UNSUPPORTED when there is any reason */
export function refuseBlocked(reasons: readonly string[]): void {
  if (reasons.length === 0) return;
  throw new CheckpointError('VM_UNSUPPORTED', `no checkpoint: ${blockedText(reasons)}`, {
    hint: remedyFor(reasons),
    detail: { hazard: MIGRATION_BLOCKED, reasons: [...reasons] },
  });
}
