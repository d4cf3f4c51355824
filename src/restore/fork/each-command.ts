/**
 * The operator's command for each child, as `--hook` is one for a pause. It is run by `/bin/sh -c` with
 *
 *     CAIRN_PHASE            before (its vCPUs have never run) | after (all children run)
 *     CAIRN_CHECKPOINT_ID    id of the checkpoint
 *     CAIRN_VM               address of the child
 *     CAIRN_VM_NAME          its name
 *     CAIRN_FORK_INDEX       from 0
 *     CAIRN_FORK_FOLDER      what it has for itself: sockets, logs, disks
 *     CAIRN_FORK_PID         its process
 *     CAIRN_FORK_UUID        empty where it has none
 *     CAIRN_FORK_MACS        of its network cards, with spaces in between
 *     CAIRN_FORK_GENERATION  its VM generation id; empty where it has none
 */

import { CheckpointError } from '../../errors.js';
import { failureOf, runProgram } from '../../host/run-program.js';
import type { ForEachFork } from './fork.js';

const LIMIT_MS = 30_000;

/** @returns what throws HOOK_FAILED when the command does not exit 0 in time, or the reason of the signal */
export function eachByCommand(command: string, checkpointId: string): ForEachFork {
  return async (phase, child, signal) => {
    const result = await runProgram('/bin/sh', ['-c', command], {
      ...{ limitMs: LIMIT_MS, signal, stdout: 'ignore', stderr: 'inherit', isShellCommand: true },
      env: {
        ...process.env,
        CAIRN_PHASE: phase,
        CAIRN_CHECKPOINT_ID: checkpointId,
        CAIRN_VM: child.vmAddress,
        CAIRN_VM_NAME: child.name,
        CAIRN_FORK_INDEX: `${child.index}`,
        CAIRN_FORK_FOLDER: child.folder,
        CAIRN_FORK_PID: `${child.pid}`,
        CAIRN_FORK_UUID: child.uuid,
        CAIRN_FORK_MACS: child.macs.join(' '),
        CAIRN_FORK_GENERATION: child.generationId,
      },
    });
    if (result.kind === 'done') return;
    if (result.kind === 'interrupted') signal.throwIfAborted();
    const why = failureOf('it', result);
    throw new CheckpointError(
      'HOOK_FAILED',
      `the command for ${child.name} failed in phase ${phase}: ${why}`,
      {
        hint: 'run the command by hand with the CAIRN_ variables set; see docs/fork.md',
        detail: { phase, index: child.index },
      },
    );
  };
}
