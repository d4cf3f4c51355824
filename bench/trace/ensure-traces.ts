/** Which traces there are in the cache, and the making of those that are missing: one guest boot a workload. */

import { existsSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

import { recordTrace } from './record.js';
import { startWorkloadGuest, workloadCache, WORKLOADS, type Workload } from './workload-guest.js';

/** Epoch lengths; the longer one in fewer epochs. */
const EPOCHS: readonly { readonly epochMs: number; readonly epochs: number }[] = [
  { epochMs: 200, epochs: 25 },
  { epochMs: 2000, epochs: 8 },
];
/** 16 MiB of contents an epoch: enough for a median, and 4 times what a worker encodes at a time. */
const MAX_CONTENT_PAGES = 4096;
const MAX_FILE_BYTES = 256 << 20;

export interface TraceFile {
  readonly workload: Workload;
  readonly epochMs: number;
  readonly path: string;
  readonly sizeBytes: number;
}

export interface EnsureOptions {
  readonly names: readonly string[];
  /** Record anew what is there. */
  readonly again?: boolean;
  readonly progress: (text: string) => void;
}

/** Traces of the named workloads that are in the cache now. */
export function cachedTraces(
  names: readonly string[] = WORKLOADS.map(({ name }) => name),
): readonly TraceFile[] {
  return wanted(names)
    .filter(({ path }) => existsSync(path))
    .map((trace) => ({ ...trace, sizeBytes: statSync(trace.path).size }));
}

/** Records what is missing. @returns all of them */
export async function ensureTraces({ names, again, progress }: EnsureOptions): Promise<readonly TraceFile[]> {
  mkdirSync(folder(), { recursive: true, mode: 0o700 });
  for (const workload of WORKLOADS) {
    const missing = wanted([workload.name]).filter(({ path }) => again === true || !existsSync(path));
    if (!names.includes(workload.name) || missing.length === 0) continue;
    progress(`traces: booting the guest for ${workload.name}`);
    const guest = await startWorkloadGuest(workload);
    try {
      for (const { path, epochMs } of missing) {
        progress(`traces: recording ${workload.name} in epochs of ${epochMs / 1000} s`);
        await recordTrace({
          address: guest.address,
          path,
          workload: workload.name,
          description: workload.description,
          epochMs,
          epochs: EPOCHS.find((kind) => kind.epochMs === epochMs)!.epochs,
          maxContentPages: MAX_CONTENT_PAGES,
          maxFileBytes: MAX_FILE_BYTES,
        });
      }
    } finally {
      await guest.destroy();
    }
  }
  return cachedTraces(names);
}

function wanted(names: readonly string[]): readonly Omit<TraceFile, 'sizeBytes'>[] {
  return WORKLOADS.filter(({ name }) => names.includes(name)).flatMap((workload) =>
    EPOCHS.map(({ epochMs }) => ({
      workload,
      epochMs,
      path: join(folder(), `${workload.name}-${epochMs}ms.trace`),
    })),
  );
}

function folder(): string {
  return join(workloadCache(), 'traces');
}
