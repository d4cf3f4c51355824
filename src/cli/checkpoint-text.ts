/** Says one checkpoint in a line for people. */

import type { CheckpointSummary } from '../checkpoint/summary.js';
import { formatBytes, formatMs, printable } from '../text.js';

export function checkpointText(summary: CheckpointSummary): string {
  const how =
    summary.compareReason === ''
      ? summary.kind
      : `${summary.kind}, all pages compared (${printable(summary.compareReason)})`;
  return [
    `checkpoint ${summary.checkpointId} of ${printable(summary.vmName)} (${how})`,
    `  pause ${formatMs(summary.pauseMs)}, total ${formatMs(summary.totalMs)}, ${summary.rounds} live rounds`,
    ...(summary.frozenMs > 0 ? [`  file systems frozen for ${formatMs(summary.frozenMs)}`] : []),
    `  ${summary.dirtyPages} dirty pages (${formatBytes(summary.rawBytes)}), stored ${formatBytes(summary.storedBytes)}`,
  ].join('\n');
}
