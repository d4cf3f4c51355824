/** The same dirty pages stored in several ways, with the time each takes on this machine. */

import { performance } from 'node:perf_hooks';

import type { PageCodec } from '../kernels/page-codec.js';
import { deltaBytes, wholeBytes, type Versions } from './encoded-size.js';

export interface CodecFigures {
  /** The way of storing, in words: `whole pages`, `deltas, zstd 3`. */
  readonly name: string;
  /** What --level takes; undefined for what Cairn only compares itself with. */
  readonly level: number | undefined;
  /** Bytes that the sampled pages take up. */
  readonly storedBytes: number;
  readonly rawBytes: number;
  /** Time for the sample, one thread. */
  readonly ms: number;
}

const LEVELS = [0, 1, 3, 6, 9, 12];
const WHOLE_LEVEL = 3;

export function compareCodecs(sample: Versions, codec: PageCodec): readonly CodecFigures[] {
  const rawBytes = sample.after.length;
  const timed = (name: string, level: number | undefined, work: () => number): CodecFigures => {
    const started = performance.now();
    const storedBytes = work();
    return { name, level, storedBytes, rawBytes, ms: performance.now() - started };
  };
  // The first run is thrown away: what runs for the first time takes longer.
  deltaBytes(sample, 1, codec);
  return [
    timed('whole pages', undefined, () => wholeBytes(sample, 0)),
    timed(`whole pages, zstd ${WHOLE_LEVEL}`, undefined, () => wholeBytes(sample, WHOLE_LEVEL)),
    ...LEVELS.map((level) =>
      timed(level === 0 ? 'deltas' : `deltas, zstd ${level}`, level, () => deltaBytes(sample, level, codec)),
    ),
  ];
}
