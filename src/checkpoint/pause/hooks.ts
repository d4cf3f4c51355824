/**
 * The operator's command around the pause: for disks that the hypervisor cannot snapshot itself, and for
 * everything else that must happen at the same instant.
 *
 * The command is run by `/bin/sh -c` with
 *
 *     CAIRN_PHASE            before-pause | paused | resumed | committed | failed | uncertain
 *     CAIRN_CHECKPOINT_ID    id of the checkpoint being taken
 *     CAIRN_VM               address of the VM
 *     CAIRN_VM_NAME          name of its chain
 *     CAIRN_REPOSITORY       location of the repository
 *
 * `before-pause` and `paused` must exit 0 or the checkpoint fails, with the guest resumed; in the other
 * phases a failure is only reported. The guest stands still while `paused` runs. After `uncertain` the
 * checkpoint may be there, so that what the command snapshotted for it must stay.
 */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import { failureOf, runProgram } from '../../host/run-program.js';

export type HookPhase = 'before-pause' | 'paused' | 'resumed' | 'committed' | 'failed' | 'uncertain';

export interface HookContext {
  readonly checkpointId: string;
  readonly vmAddress: string;
  readonly vmName: string;
  readonly repository: string;
}

export interface Hook {
  /** @param signal once aborted, the hook is ended, with everything that it started */
  run(phase: HookPhase, context: HookContext, signal?: AbortSignal): Promise<void>;
}

export const HOOK_LIMIT_MS = 30_000;

export class CommandHook implements Hook {
  readonly #command: string;
  readonly #timeoutMs: number;

  /**
   * @param timeoutMs a hook that has not ended by then is killed and counts as failed: it may be holding the
   *   guest
   */
  constructor(command: string, timeoutMs = HOOK_LIMIT_MS) {
    this.#command = command;
    this.#timeoutMs = timeoutMs;
  }

  /** @throws HOOK_FAILED, the reason of the signal */
  async run(phase: HookPhase, context: HookContext, signal?: AbortSignal): Promise<void> {
    const result = await runProgram('/bin/sh', ['-c', this.#command], {
      limitMs: this.#timeoutMs,
      signal,
      stdout: 'ignore',
      // The command is the operator's, and so are its language and what it says.
      stderr: 'inherit',
      isShellCommand: true,
      env: {
        ...process.env,
        CAIRN_PHASE: phase,
        CAIRN_CHECKPOINT_ID: context.checkpointId,
        CAIRN_VM: context.vmAddress,
        CAIRN_VM_NAME: context.vmName,
        CAIRN_REPOSITORY: context.repository,
      },
    });
    if (result.kind === 'done') return;
    if (result.kind === 'interrupted') signal?.throwIfAborted();
    const why = failureOf('it', result);
    throw new CheckpointError('HOOK_FAILED', `the hook command failed in phase ${phase}: ${why}`, {
      hint: 'run the command by hand with the CAIRN_ variables set; see docs/operations.md',
      detail: { phase },
    });
  }
}

/** The phase `resumed`, in which the hook's failure is a warning. @throws what is not HOOK_FAILED */
export async function runResumedHook(
  hook: Hook | undefined,
  context: HookContext,
  warn: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  try {
    await hook?.run('resumed', context, signal);
  } catch (error) {
    if (!isCheckpointError(error, 'HOOK_FAILED')) throw error;
    warn(error.message);
  }
}
