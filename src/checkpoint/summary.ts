/** What one checkpoint cost: the figures of the summary message, and of the manifest's `stats`. */

import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import type { Captured, PhaseTimes } from './pause/captured.js';
import type { PageWriterTotals } from './pages/page-writer.js';
import type { Scope } from './trust/scope.js';

export interface CheckpointSummary {
  readonly checkpointId: string;
  readonly parentId: string | null;
  readonly kind: 'base' | 'incremental';
  readonly vmName: string;
  readonly tracker: string;
  /** Why all pages were looked at, empty when the tracker was trusted. */
  readonly compareReason: string;
  /** Time from the request to stop until the VM runs again; 0 when it was found paused. */
  readonly pauseMs: number;
  readonly phases: PhaseTimes;
  /** Time for which the guest's file systems were frozen, pause included; 0 without --freeze. */
  readonly frozenMs: number;
  readonly totalMs: number;
  /** Pre-copy rounds while the VM ran. */
  readonly rounds: number;
  /** Pages of the VM that the tracker looked at. */
  readonly scannedPages: number;
  /** Distinct pages that were copied. */
  readonly dirtyPages: number;
  /** How many of these were copied inside the pause. */
  readonly pausePages: number;
  /** Copies that turned out to hold what they held before. */
  readonly unchangedPages: number;
  /** Bytes kept in records: the changed bytes of deltas, whole pages otherwise. */
  readonly changedBytes: number;
  /** dirtyPages x 4096: what page-granular increments would keep. */
  readonly rawBytes: number;
  /** Bytes this checkpoint added to the repository, manifest included. */
  readonly storedBytes: number;
  /**
   * Pages that did not change and were stored once more, to keep the chain quick to read (docs/format.md,
   * regrouping).
   */
  readonly regroupedPages: number;
  /** Part of `storedBytes`. */
  readonly regroupedBytes: number;
  /** Part of `totalMs`; the VM runs meanwhile. */
  readonly regroupMs: number;
  readonly deviceStateBytes: number;
  readonly diskSnapshots: number;
  readonly warnings: readonly string[];
}

export type SummaryFigures = Omit<
  CheckpointSummary,
  'checkpointId' | 'parentId' | 'totalMs' | 'storedBytes' | 'regroupedPages' | 'regroupedBytes' | 'regroupMs'
>;

/** The part of a summary that is known before the commit, and goes into the manifest. */
export function summaryFigures(facts: {
  readonly scope: Scope;
  readonly captured: Captured;
  readonly totals: PageWriterTotals;
  readonly tracker: string;
  readonly layout: MemoryLayout;
  readonly vmName: string;
}): SummaryFigures {
  const { scope, captured, totals } = facts;
  return {
    kind: scope.kind === 'base' ? 'base' : 'incremental',
    vmName: facts.vmName,
    tracker: facts.tracker,
    compareReason: scope.kind === 'compare' ? scope.reason : '',
    pauseMs: captured.pauseMs,
    phases: captured.phases,
    frozenMs: captured.frozenMs,
    rounds: captured.rounds,
    scannedPages: facts.layout.sizeBytes / PAGE_SIZE_BYTES,
    dirtyPages: captured.dirtyPages,
    pausePages: captured.pausePages,
    unchangedPages: totals.unchangedPages,
    changedBytes: totals.changedBytes,
    rawBytes: captured.dirtyPages * PAGE_SIZE_BYTES,
    deviceStateBytes: captured.deviceState.length,
    diskSnapshots: captured.disks.length,
    warnings: captured.warnings,
  };
}
