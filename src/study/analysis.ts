/** The whole analysis of one subject, as data: what the report shows and `--json` prints. */

import { PageCodec } from '../kernels/page-codec.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { adviceFor, type Advice } from './advice.js';
import { CacheSimulation, type BudgetFigures } from './cache-simulation.js';
import { compareCodecs, type CodecFigures } from './codec-comparison.js';
import { PageStudy, type PageStatistics } from './page-statistics.js';
import { thinned } from './sampling.js';
import type { ObservedEpoch, Subject } from './subject.js';
import { intervalFigures } from './windows.js';

export interface Analysis {
  readonly subject: Omit<Subject, 'epochs'>;
  readonly statistics: PageStatistics;
  readonly budgets: readonly BudgetFigures[];
  readonly codecs: readonly CodecFigures[];
  readonly advice: Advice;
}

export interface AnalyzeOptions {
  /** What a day of checkpoints may store; default: as much as it takes. */
  readonly mostBytesPerDay?: number | undefined;
}

/**
 * The contents of about so many pages an epoch are kept for the windows: 4 MiB an epoch, before and after.
 */
const KEPT_PAGES = 512;
/** Pages that the codecs are compared on: 16 MiB. */
const CODEC_PAGES = 4096;
const WINDOW_LEVEL = 3;
const BUDGETS_MIB = [1, 4, 16, 64, 128, 256, 512, 1024];

/** Reads all epochs once. @throws what the subject throws */
export async function analyze(
  subject: Subject,
  options: AnalyzeOptions = {},
  onEpoch: (done: number) => void = () => undefined,
): Promise<Analysis> {
  const study = new PageStudy();
  const memory = BUDGETS_MIB.map((mib) => mib << 20).filter((bytes) => bytes <= subject.memoryBytes);
  const cache = new CacheSimulation(memory.length === 0 ? [subject.memoryBytes] : memory);
  const kept: ObservedEpoch[] = [];
  const sample: { before: Uint8Array[]; after: Uint8Array[]; pages: number } = {
    before: [],
    after: [],
    pages: 0,
  };
  let oneIn = 1;
  for await (const epoch of subject.epochs()) {
    study.add(epoch);
    cache.add(epoch.pages);
    // Once the sample had to be thinned it stays so: otherwise pages would come and go.
    while (epoch.contentPages.length / oneIn > KEPT_PAGES) oneIn *= 2;
    kept.push(thinned(epoch, oneIn));
    if (sample.pages < CODEC_PAGES) {
      const count = Math.min(epoch.contentPages.length, CODEC_PAGES - sample.pages);
      sample.before.push(epoch.before.slice(0, count * PAGE_SIZE_BYTES));
      sample.after.push(epoch.after.slice(0, count * PAGE_SIZE_BYTES));
      sample.pages += count;
    }
    onEpoch(kept.length);
  }
  const codec = new PageCodec();
  const codecs = compareCodecs(
    { before: Buffer.concat(sample.before), after: Buffer.concat(sample.after) },
    codec,
  );
  const budgets = cache.result();
  const { kind, name, memoryBytes, epochMs, pauseMs } = subject;
  return {
    subject: { kind, name, memoryBytes, epochMs, pauseMs },
    statistics: study.result(),
    budgets,
    codecs,
    advice: adviceFor({
      pauseMs,
      mostBytesPerDay: options.mostBytesPerDay,
      intervals: intervalFigures(kept, WINDOW_LEVEL, codec, memoryBytes / PAGE_SIZE_BYTES),
      budgets,
      codecs,
    }),
  };
}
