/** Options of a restore of a domain of Xen, which change its recorded configuration. */

import type { RestoreOptionTable } from '../../src/hypervisor/restore-options.js';
import type { RestoreRequest } from '../../src/hypervisor/restore.js';

export interface XenRestoreOptions {
  /** Restores under another name, and with it under another UUID. */
  readonly newName?: string;
  /** Disks that lie elsewhere now, each `DISK=PATH`, DISK as the configuration calls it. */
  readonly diskPaths?: readonly string[];
}

export type XenRestoreRequest = RestoreRequest & XenRestoreOptions;

export const XEN_RESTORE_OPTIONS: RestoreOptionTable<XenRestoreOptions> = {
  newName: {
    flags: '--new-name <name>',
    description: 'restore under this name and a new UUID',
    kind: 'text',
  },
  diskPaths: {
    flags: '--disk <target=path>',
    description: 'this disk lies at PATH now (repeatable)',
    kind: 'list',
    replacesDisks: true,
  },
};
