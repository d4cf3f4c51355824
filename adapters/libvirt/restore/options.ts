/**
 * Options of a restore of a domain. libvirt starts it, so most of them edit its description; with `--to` a
 * QEMU that waits gets it instead, and is reached as any QEMU is.
 */

import type { RestoreOptionTable } from '../../../src/hypervisor/restore-options.js';
import type { RestoreRequest } from '../../../src/hypervisor/restore.js';
import { KVM_RESTORE_OPTIONS, type KvmRestoreOptions } from '../../kvm/restore/options.js';

export interface LibvirtRestoreOptions extends Pick<
  KvmRestoreOptions,
  'target' | 'setArgs' | 'socketPath' | 'guestAgent' | 'setTime' | 'lazy' | 'eager'
> {
  /** Restores under another name, and with it under another UUID. */
  readonly newName?: string;
  readonly newMacs?: true;
  /** Disks that lie elsewhere now, each `DISK=PATH`, DISK as the domain calls it. */
  readonly diskPaths?: readonly string[];
  /** Shell command: gets the description on stdin, writes the changed one to stdout. */
  readonly xmlCommand?: string;
}

export type LibvirtRestoreRequest = RestoreRequest & LibvirtRestoreOptions;

const { target, setArgs, socketPath, guestAgent, setTime, lazy, eager } = KVM_RESTORE_OPTIONS;

export const LIBVIRT_RESTORE_OPTIONS: RestoreOptionTable<LibvirtRestoreOptions> = {
  target,
  setArgs,
  socketPath,
  guestAgent,
  setTime,
  lazy,
  eager,
  newName: {
    flags: '--new-name <name>',
    description: 'restore under this name and a new UUID',
    kind: 'text',
  },
  newMacs: {
    flags: '--new-macs',
    description: 'new MAC addresses, which the guest uses from its next boot on',
    kind: 'flag',
  },
  diskPaths: {
    flags: '--disk <target=path>',
    description: 'this disk lies at PATH now (repeatable)',
    kind: 'list',
    replacesDisks: true,
  },
  xmlCommand: {
    flags: '--xml-edit <command>',
    description: 'shell command through which the domain XML goes',
    kind: 'text',
  },
};

/** Options that edit the description of the domain, as they were given. */
export function editsIn(options: LibvirtRestoreOptions): readonly string[] {
  return (['newName', 'newMacs', 'diskPaths', 'xmlCommand'] as const).filter(
    (key) => options[key] !== undefined,
  );
}
