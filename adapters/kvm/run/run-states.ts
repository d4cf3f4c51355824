/**
 * The run states of QEMU (RunState of qapi/run-state.json): which of them a checkpoint takes, and what the others mean
 * to an operator.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { RunState } from '../../../src/hypervisor/run-state.js';
import type { Json } from '../../../src/types.js';
import { asObject, asText } from '../../qemu/qmp-json.js';

export interface RefusedState {
  /** Goes on after "the VM". */
  readonly means: string;
  readonly remedy: string;
}

const UNDER_WAY: RefusedState = {
  means: 'is being saved, restored or migrated',
  remedy: 'wait until that is over, or cancel it',
};

const REFUSED: Readonly<Record<string, RefusedState>> = {
  'io-error': {
    means: 'was stopped by QEMU, since one of its disks reports errors',
    remedy:
      'mend the storage (full? gone?) and send cont: a request that has failed is tried again then, and is in no checkpoint before that',
  },
  suspended: {
    means: 'sleeps, as its guest has asked for (S3)',
    remedy: 'wake it with system_wakeup: QEMU resumes no sleeping guest from a saved state',
  },
  'guest-panicked': {
    means: 'stands still, because its guest has panicked',
    remedy: 'restore an earlier checkpoint, or reset it with system_reset and cont',
  },
  shutdown: {
    means: 'stands still, because its guest has shut down',
    remedy: 'reset it with system_reset and cont, or end QEMU: its disks hold all that is left',
  },
  watchdog: {
    means: 'was stopped by its watchdog device',
    remedy: 'restore an earlier checkpoint, or reset it with system_reset and cont',
  },
  'internal-error': {
    means: 'was stopped by QEMU or KVM, which could not carry on',
    remedy: 'restore an earlier checkpoint, or reset it with system_reset and cont',
  },
  debug: {
    means: 'was stopped by a debugger on the gdbstub of QEMU',
    remedy: 'have the debugger continue it',
  },
  inmigrate: {
    means: 'waits for a migration or a restore to come in',
    remedy: 'wait until that is over',
  },
  postmigrate: {
    means: 'has been migrated away, or saved into a file',
    remedy: 'if it is to go on here, send cont; never while it runs elsewhere',
  },
  'finish-migrate': UNDER_WAY,
  'save-vm': UNDER_WAY,
  'restore-vm': UNDER_WAY,
  colo: UNDER_WAY,
};

/** @param reply of query-status. `prelaunch` is a VM started with -S that has not run yet. */
export function runStateOf(reply: Json): RunState {
  const status = statusOf(reply);
  if (status === 'running') return 'running';
  return status === 'paused' || status === 'prelaunch' ? 'paused' : 'other';
}

export function statusOf(reply: Json): string {
  return asText(asObject(reply).status);
}

/** Why no checkpoint is taken in this state; undefined for one in which it is. */
export function refusedState(status: string): RefusedState | undefined {
  if (runStateOf({ status }) !== 'other') return undefined;
  return (
    REFUSED[status] ?? { means: `is in state ${status}`, remedy: 'look at it in its monitor (info status)' }
  );
}

/** For a state of which `refusedState` says something. */
export function stateRefused(status: string): CheckpointError {
  const { means, remedy } = refusedState(status) ?? UNDER_WAY;
  return new CheckpointError('VM_STATE', `the VM ${means}`, {
    hint: remedy,
    retryable: true,
    detail: { status },
  });
}
