/**
 * Checkpoints of a machine that the hypervisor's own tools send as they would to a standby host: one for each
 * state that comes, or for several when they come faster than they can be stored.
 */

import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';

import type { CheckpointSession } from '../checkpoint/session.js';
import type { CheckpointSummary } from '../checkpoint/summary.js';
import { isCheckpointError } from '../errors.js';
import { makeWorkFolder } from '../host/work-folder.js';
import type { ReceivingHypervisor } from '../hypervisor/registry.js';
import { MemoryFile } from './memory-file.js';
import { openImageSession } from './import.js';
import type { Repository } from '../repository/repository.js';
import { StreamVm } from './stream-vm.js';

export interface ReceiveOptions {
  readonly repository: Repository;
  readonly hypervisor: ReceivingHypervisor;
  /** Destroyed in the end, which tells the sender. */
  readonly stream: Readable;
  /** Name of the chain; default: what the stream calls the VM. */
  readonly name?: string | undefined;
  /** Stop after that many checkpoints. */
  readonly count?: number | undefined;
  /**
   * Where memory is unpacked, up to twice as large as the guest's; default: the system's folder for temporary
   * files.
   */
  readonly tempDir?: string | undefined;
  readonly compressionLevel?: number | undefined;
  readonly workers?: number | undefined;
  /** Ends it after the checkpoint under way. */
  readonly signal?: AbortSignal | undefined;
  readonly onState?: (state: number, pageCount: number) => void;
  readonly onCheckpoint?: (checkpoint: ReceivedCheckpoint) => void;
  /** A checkpoint failed that may be made up for with the next state. */
  readonly onFailure?: (error: unknown) => void;
}

export interface ReceivedCheckpoint extends CheckpointSummary {
  /** Number of the state in the stream, counted from 1. */
  readonly state: number;
  /** How many states have come since the last checkpoint. */
  readonly states: number;
}

export interface ReceiveResult {
  readonly checkpoints: number;
  readonly failed: number;
}

/** Errors after which the next state will not fare better. */
const FATAL = [
  'VM_UNSUPPORTED',
  'VM_UNREACHABLE',
  'REPO_DAMAGED',
  'WORKER_FAILED',
  'STREAM_MALFORMED',
] as const;

const UNKNOWN_PAUSE =
  'how long the VM stood still for the first state is not known: most of it is sent while it runs, and its pause leaves the rest out';

/**
 * Until the stream ends. A state that has not come whole by then is left out.
 * @throws VM_UNSUPPORTED, VM_UNREACHABLE, STREAM_MALFORMED, CHAIN_WRONG_VM, REPO_LOCKED, REPO_DAMAGED,
 *   WORKER_FAILED
 */
export async function receiveCheckpoints(options: ReceiveOptions): Promise<ReceiveResult> {
  const { hypervisor, stream, onState, signal } = options;
  const workDir = await makeWorkFolder(options.tempDir ?? tmpdir(), 'receive');
  let memory: MemoryFile | undefined;
  try {
    const received = await hypervisor.receive({
      stream: endedBy(stream, signal),
      workDir,
      ...(onState === undefined ? {} : { onState }),
    });
    try {
      memory = new MemoryFile(received.layout, join(workDir, 'memory'));
      const vm = new StreamVm(`receive:${received.identity.name}`, received, memory);
      // A checkpoint under way is finished when the signal comes.
      const session = await openImageSession(vm, workDir, { ...options, signal: undefined });
      try {
        return await takeEach(options, session, vm, () => received.nextState());
      } finally {
        await session.close();
      }
    } finally {
      received.close();
    }
  } finally {
    stream.destroy();
    memory?.close();
    await rm(workDir, { recursive: true, force: true });
  }
}

async function takeEach(
  { count, onCheckpoint, onFailure }: ReceiveOptions,
  session: CheckpointSession,
  vm: StreamVm,
  nextState: () => Promise<boolean>,
): Promise<ReceiveResult> {
  let checkpoints = 0;
  let failed = 0;
  while ((count === undefined || checkpoints < count) && (await nextState())) {
    try {
      const summary = await session.checkpoint();
      checkpoints++;
      const { number = 0, stateCount = 0, pauseMs } = vm.state ?? {};
      const warnings = pauseMs === undefined ? [...summary.warnings, UNKNOWN_PAUSE] : summary.warnings;
      onCheckpoint?.({ ...summary, warnings, state: number, states: stateCount });
    } catch (error) {
      if (FATAL.some((code) => isCheckpointError(error, code))) throw error;
      failed++;
      onFailure?.(error);
    }
  }
  return { checkpoints, failed };
}

/** The stream, which ends as well when the signal says so. */
async function* endedBy(stream: Readable, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  const end = (): void => void stream.destroy();
  signal?.addEventListener('abort', end, { once: true });
  try {
    if (signal?.aborted === true) return;
    for await (const chunk of stream) yield chunk as Buffer;
  } catch (error) {
    // What is read from a stream that was destroyed here is no failure of it.
    if (!stream.destroyed || stream.errored !== null) throw error;
  } finally {
    signal?.removeEventListener('abort', end);
  }
}
