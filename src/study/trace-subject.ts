/** A trace file (docs/trace-format.md). */

import { TraceReader } from './trace/trace-reader.js';
import type { ObservedEpoch, Subject } from './subject.js';

/** @throws TRACE_MALFORMED */
export function openTraceSubject(path: string): Subject & { close(): Promise<void> } {
  const reader = TraceReader.open(path);
  const { layout, epochMs } = reader.header;
  return {
    kind: 'trace',
    name: path,
    memoryBytes: layout.sizeBytes,
    epochMs,
    pauseMs: undefined,
    // eslint-disable-next-line @typescript-eslint/require-await -- read synchronously, unlike the contract
    async *epochs(): AsyncGenerator<ObservedEpoch> {
      yield* reader.epochs();
    },
    close: () => {
      reader.close();
      return Promise.resolve();
    },
  };
}
