/**
 * What a session of checkpoints is told when it is opened. How its VM was attached is the caller's affair.
 */

import type { DiskMode } from '../disks/disk-plan.js';
import type { Repository } from '../repository/repository.js';

export interface SessionOptions {
  readonly repository: Repository;
  /** Name of the chain in the repository; default: the VM's own name, else its UUID. */
  readonly name?: string | undefined;
  /** `auto`, or the kind to insist on. */
  readonly tracker?: string | undefined;
  /** Budget for previous versions of pages. Default 256 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Default: one a core, at most 4. */
  readonly workers?: number | undefined;
  /** zstd level, 0 = off. Default 3. */
  readonly compressionLevel?: number | undefined;
  /** Default 10. */
  readonly maxPauseMs?: number | undefined;
  /** For how long the VM may stand still. Default: see `pause/pause-limit.ts`. */
  readonly pauseLimitMs?: number | undefined;
  /** Pages that each worker has room for in the pause, at least. Default 65536. */
  readonly roomPages?: number | undefined;
  readonly memoryOnly?: boolean | undefined;
  readonly diskMode?: DiskMode | undefined;
  /** Shell command, see `hooks.ts`. */
  readonly hook?: string | undefined;
  /**
   * Freeze the guest's file systems for the pause by its agent, which gets this time for it; undefined: do
   * not.
   */
  readonly freezeLimitMs?: number | undefined;
  /**
   * Keep the records of a long chain together, at some cost in time and space every few checkpoints: in their
   * commits (default), `between` checkpoints by `upkeep`, or not at all.
   */
  readonly regroup?: boolean | 'between' | undefined;
  readonly runtimeDir?: string | undefined;
  /** Key of the host that takes the checkpoints; without it a restore asks before it trusts them. */
  readonly hostKey?: Uint8Array | undefined;
  /**
   * Called with what the operator should know although all goes on, such as a lock that is watched for signs
   * of life before it is taken over.
   */
  readonly onNotice?: ((text: string) => void) | undefined;
  /** Ends waiting for the lock of the chain; default: `signal`. */
  readonly waitSignal?: AbortSignal | undefined;
  readonly signal?: AbortSignal | undefined;
}
