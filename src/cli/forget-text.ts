/** What was forgotten, for people and for programs. */

import type { LeftSnapshot } from '../disks/forgotten-disks.js';
import { formatBytes, formatTable, printable } from '../text.js';
import type { ForgetResult } from '../repository/forget/forget.js';
import { diskEntry } from '../format/disk-entry.js';
import type { Manifest } from '../format/manifest.js';

export interface ForgetReport extends ForgetResult {
  /** Name of the VM. */
  readonly name: string;
  readonly dryRun: boolean;
  /** Disk snapshots of the removed checkpoints that are still there. */
  readonly disks: readonly LeftSnapshot[];
}

export function forgetText(report: ForgetReport): string {
  const { name, kept, removed, dryRun, isSwept } = report;
  // A watcher says this after every checkpoint.
  if (!isSwept) {
    const gone = removed.map(({ id, manifest }) => `${id} (${manifest?.time ?? 'damaged'})`);
    return `${printable(name)}: ${kept.length} kept, removed ${gone.join(', ')}`;
  }
  const rows = [
    ...kept.map(({ manifest, reasons }) => ({
      manifest,
      row: [manifest.id, manifest.time, 'keep', reasons.join(', ')],
    })),
    ...removed.map(({ id, manifest }) => ({
      manifest,
      row: [id, manifest?.time ?? '(damaged)', dryRun ? 'would remove' : 'removed', ''],
    })),
  ].sort((a, b) => (a.manifest?.seq ?? 0) - (b.manifest?.seq ?? 0));
  const { disks } = report;
  const freed = formatBytes(report.freedBytes);
  return [
    `${printable(name)}: ${kept.length} kept, ${removed.length} ${dryRun ? 'would be removed' : 'removed'}`,
    ...(removed.length === 0
      ? []
      : [
          formatTable(
            ['id', 'time', '', 'reasons'],
            rows.map(({ row }) => row),
          ),
        ]),
    `${dryRun ? `would free about ${freed}` : `freed ${freed}`} (${report.removedObjects} objects removed, ${report.thinnedPacks} packs thinned)`,
    ...(disks.length === 0 ? [] : [`disk snapshots that ${dryRun ? 'belong to them' : 'stay'}:`]),
    ...disks.map(({ remedy, why }) => `  ${printable(`${remedy}${why === '' ? '' : `   # ${why}`}`)}`),
  ].join('\n');
}

/** What is said when less was freed than could have been, for lack of room. */
export const SHORT_OF_ROOM =
  'there was no room to write packs anew without what is not needed: with some room, "cairn prune" frees more';

/** Fields of the summary of one chain. */
export function forgetFields(report: ForgetReport): Record<string, unknown> {
  const {
    name,
    chain,
    kept,
    removed,
    misdated,
    dryRun,
    freedBytes,
    removedObjects,
    thinnedPacks,
    isSwept,
    problems,
    disks,
  } = report;
  const named = (manifest: Manifest): Record<string, unknown> => ({
    checkpointId: manifest.id,
    time: manifest.time,
  });
  return {
    name,
    chain,
    dryRun,
    kept: kept.map(({ manifest, reasons }) => ({ ...named(manifest), reasons })),
    removed: removed.map(({ id, manifest }) => ({
      checkpointId: id,
      time: manifest?.time ?? null,
    })),
    misdated: misdated.map(named),
    freedBytes,
    removedObjects,
    thinnedPacks,
    swept: isSwept,
    problems,
    shortOfRoom: report.isShortOfRoom,
    disks: disks.map(({ checkpointId, snapshot, remedy, why }) => ({
      checkpointId,
      ...diskEntry(snapshot),
      remedy,
      why,
    })),
  };
}
