/** The traces a bench run works on: of the cache, or, in a quick run on a machine that has none, the committed samples. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';

import { TraceReader, type TraceEpoch } from '../../src/study/trace/trace-reader.js';
import { SOURCE_ROOT } from '../../test/lab/support/lab-files.js';
import type { BenchContext } from '../rows.js';
import { cachedTraces, ensureTraces } from './ensure-traces.js';
import { WORKLOADS } from './workload-guest.js';

export interface BenchTrace {
  /** Workload and epoch length, for the rows. */
  readonly label: string;
  readonly path: string;
}

export async function benchTraces({ quick, progress }: BenchContext): Promise<readonly BenchTrace[]> {
  const names = WORKLOADS.map(({ name }) => name);
  const files = quick ? cachedTraces(names) : await ensureTraces({ names, progress });
  const chosen = quick ? files.filter(({ epochMs }) => epochMs === 200) : files;
  if (chosen.length > 0)
    return chosen.map(({ workload, epochMs, path }) => ({
      label: `${workload.name}, ${epochMs / 1000} s`,
      path,
    }));
  const samples = join(SOURCE_ROOT, 'bench/trace/samples');
  return readdirSync(samples).map((name) => ({
    label: `sample ${name.replace(/-.*/, '')}, 0.2 s`,
    path: join(samples, name),
  }));
}

/** Epochs that have contents, at most `most`. */
export function contentEpochs({ path }: BenchTrace, most: number): readonly TraceEpoch[] {
  const reader = TraceReader.open(path);
  try {
    const epochs: TraceEpoch[] = [];
    for (const epoch of reader.epochs()) {
      if (epoch.contentPages.length > 0) epochs.push(epoch);
      if (epochs.length === most) break;
    }
    return epochs;
  } finally {
    reader.close();
  }
}
