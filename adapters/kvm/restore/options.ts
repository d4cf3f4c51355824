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
  /** Each `OLD=NEW`: what was recorded below the folder OLD lies below NEW now. */
  readonly setPaths?: readonly string[];
  /** Runs another program than the recorded one. */
  readonly program?: string;
  /** Where the new VM takes commands; default: as recorded. */
  readonly socketPath?: string;
  /** Socket of the agent in the restored guest, where it is not found by itself. */
  readonly guestAgent?: string;
  /** Once it runs, the guest's agent sets its clock to that of this host. */
  readonly setTime?: true;
  readonly logPath?: string;
  /** QEMU gets the rights of the caller instead of those that were recorded. */
  readonly asRoot?: true;
  /** The VM runs as soon as it has its device state; a page server fills its memory meanwhile. */
  readonly lazy?: true;
  /** All memory first, which is what happens by itself. */
  readonly eager?: true;
  /** Of a lazy restore: it returns once the VM runs. */
  readonly background?: true;
  /** Of a lazy restore: MiB a second beside what the guest asks for. */
  readonly fillRate?: string;
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
  setPaths: {
    flags: '--set-path <old=new>',
    description:
      'a folder has moved: disks, sockets and all else recorded below OLD lie below NEW (repeatable)',
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
  setTime: {
    flags: '--set-time',
    description: "have the guest's agent set its clock to the time of this host",
    kind: 'flag',
  },
  logPath: { flags: '--log <path>', description: 'output of the new QEMU goes here', kind: 'text' },
  asRoot: {
    flags: '--as-root',
    description: 'start QEMU with all rights of the caller instead of those that were recorded',
    kind: 'flag',
  },
  lazy: {
    flags: '--lazy',
    description: 'have the VM run at once; its memory comes in when it is needed, and the rest meanwhile',
    kind: 'flag',
  },
  eager: {
    flags: '--eager',
    description: 'have the VM run when all of its memory is there (default)',
    kind: 'flag',
  },
  background: {
    flags: '--background',
    description: 'with --lazy: return once the VM runs; a page server goes on filling it',
    kind: 'flag',
  },
  fillRate: {
    flags: '--fill-rate <MiB/s>',
    description: 'with --lazy: fill no faster than this beside what the guest asks for (default: 200)',
    kind: 'text',
  },
};
