/** Options of a restore that starts a QEMU, or feeds one that waits. */

import type { RestoreOptionTable } from '../../../src/hypervisor/restore-options.js';
import type { RestoreRequest } from '../../../src/hypervisor/restore.js';

export interface KvmRestoreOptions {
  /**
   * Undefined: start a new VM. Otherwise an address that waits for an incoming stream, such as unix:/path or
   * tcp:host:port.
   */
  readonly target?: string;
  /** Starts it under this name, beside the original: what a process has for itself is derived from that. */
  readonly newName?: string;
  /** Replace (or add) arguments of the recorded command line, each `-option=value` or `-flag`. */
  readonly setArgs?: readonly string[];
  readonly dropArgs?: readonly string[];
  /** Runs another program than the recorded one. */
  readonly program?: string;
  /** Where the new VM takes commands; default: as recorded. */
  readonly socketPath?: string;
  /** Socket of the agent in the restored guest, where it is not found by itself. */
  readonly guestAgent?: string;
  readonly logPath?: string;
  /** QEMU gets the rights of the caller instead of those that were recorded. */
  readonly asRoot?: true;
}

export type KvmRestoreRequest = RestoreRequest & KvmRestoreOptions;

export const KVM_RESTORE_OPTIONS: RestoreOptionTable<KvmRestoreOptions> = {
  target: {
    flags: '--to <address>',
    description:
      'send to a waiting qemu -incoming (unix:PATH or tcp:HOST:PORT), or give it to libvirt[:URI], instead of starting a QEMU',
    kind: 'text',
  },
  newName: {
    flags: '--new-name <name>',
    description: 'start it under another name, with sockets, files and ports of its own, beside the original',
    kind: 'text',
  },
  setArgs: {
    flags: '--set-arg <-option=value>',
    description: 'replace or add an argument of the recorded command line (repeatable)',
    kind: 'list',
  },
  dropArgs: {
    flags: '--drop-arg <-option>',
    description: 'leave out an argument of the recorded command line (repeatable)',
    kind: 'list',
  },
  program: {
    flags: '--program <path>',
    description: 'start this program instead of the recorded one',
    kind: 'text',
  },
  socketPath: {
    flags: '--qmp <path>',
    description: 'QMP socket of the new VM (default: as recorded)',
    kind: 'text',
  },
  guestAgent: {
    flags: '--guest-agent <path>',
    description:
      "socket of the guest's agent, which thaws the guest of a checkpoint taken with --freeze (default: that of the command line)",
    kind: 'text',
  },
  logPath: { flags: '--log <path>', description: 'output of the new QEMU goes here', kind: 'text' },
  asRoot: {
    flags: '--as-root',
    description: 'start QEMU with all rights of the caller instead of those that were recorded',
    kind: 'flag',
  },
};
