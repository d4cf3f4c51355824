/**
 * The rows of the README: at most six, chosen for what an operator asks, and not for how they came out. A goal that is missed stays, and
 * so does a row in which the peer wins.
 */

import { findRow, own, peers, verdict } from './figures.js';
import { measurementsOf, type BenchResults } from './results.js';
import type { BenchRow } from './rows.js';

interface Headline extends Pick<BenchRow, 'area' | 'name' | 'workload'> {
  /** Tells rows apart that differ only in what they are held against. */
  readonly peer: string;
  /** In the operator's words; workload included. */
  readonly asked: string;
  /** `peer` in a few words. */
  readonly against: string;
}

export const HEADLINES: readonly Headline[] = [
  {
    asked: 'pause, p50 (1 GiB, 18 MiB rewritten)',
    against: "QEMU's background-snapshot",
    area: 'pause',
    name: 'pause, p50',
    workload: '1 GiB guest, 18 MiB rewritten in between, QEMU 7.2',
    peer: 'QEMU background-snapshot to a file',
  },
  {
    asked: 'increment until durable (1 GiB, small writes for 1 s)',
    against: "QEMU's migration to a file",
    area: 'checkpoint-time',
    name: 'increment, total, durable',
    workload: '1 GiB guest, scattered small writes and runs of 64 KiB for 1 s',
    peer: 'QEMU migrate to a file, durable',
  },
  {
    asked: 'stored for that increment',
    against: "QEMU's migration to a file",
    area: 'checkpoint-time',
    name: 'increment, stored',
    workload: '1 GiB guest, scattered small writes and runs of 64 KiB for 1 s',
    peer: 'QEMU migrate to a file',
  },
  {
    asked: 'base until durable (1 GiB, the guest runs)',
    against: "QEMU's migration, guest stopped",
    area: 'checkpoint-time',
    name: 'base, total, durable (the VM runs)',
    workload: '1 GiB guest',
    peer: 'QEMU migrate to a file, durable (the VM stands still)',
  },
  {
    asked: 'work lost in the guest, a checkpoint each second',
    against: '',
    area: 'slow-down',
    name: 'operations per second lost, a checkpoint every 1 s',
    workload: 'median of 9 workloads',
    peer: '',
  },
  {
    asked: 'reading 512 MiB back, chain of 1000',
    against: 'chain of 1',
    area: 'chain',
    name: 'all pages, chain of 1000',
    workload: '512 MiB guest, scattered small writes and runs of 64 KiB',
    peer: 'chain of 1',
  },
];

/** Markdown, a row for each headline that was measured. */
export function headlineTable(results: BenchResults): string {
  const lines = measurementsOf(results).flatMap(({ rows, date, commit, quick }) =>
    HEADLINES.flatMap((headline, rank) => {
      const row = findRow(rows, headline);
      if (row === undefined) return [];
      const peer = row.peer_value === null ? '' : `${headline.against}: ${peers(row)}`;
      const measured = `${date} ${commit}${quick ? ' quick' : ''}`;
      return [
        { rank, line: `| ${headline.asked} | ${own(row)} | ${peer} | ${verdict(row)} | ${measured} |` },
      ];
    }),
  );
  return [
    '| | Cairn | against | goal | measured, commit |',
    '| --- | --- | --- | --- | --- |',
    ...lines.sort((a, b) => a.rank - b.rank).map(({ line }) => line),
  ].join('\n');
}
