/** What an object store does, as `init` and `doctor` need it. Loaded only for the address of one. */

import type { StoreReport } from '../storage/s3/probe.js';
import { CheckpointError } from '../errors.js';

/** Clocks that are further apart than this are worth a word: a request is refused from 15 minutes on. */
const CLOCK_SLACK_MS = 60_000;

export interface ProbedStore {
  readonly report: StoreReport;
  /** The operator has said that nobody else writes there. */
  readonly isSingleWriter: boolean;
}

/** Asks the store at an address, see `probeStore`. @throws what the store answers */
export async function probeAddress(address: string, signal?: AbortSignal): Promise<ProbedStore> {
  const [{ openS3 }, { probeStore }] = await Promise.all([
    import('../storage/s3/open-s3.js'),
    import('../storage/s3/probe.js'),
  ]);
  const { client, address: parsed, isSingleWriter, backend } = await openS3(address);
  try {
    return { report: await probeStore(client, parsed.prefix, address, signal), isSingleWriter };
  } finally {
    await backend.close();
  }
}

/** @throws STORAGE_UNSUITABLE unless it may be used with its shortcomings */
export async function mustSuit({ report, isSingleWriter }: ProbedStore, address: string): Promise<void> {
  if (isSingleWriter && report.showsAtOnce) return;
  const { mustBeSuitable } = await import('../storage/s3/probe.js');
  mustBeSuitable(report, address);
}

export function storeText({ report, isSingleWriter }: ProbedStore, address: string): string {
  const seconds = Math.round(report.clockAheadMs / 1000);
  const yes = (is: boolean): string => (is ? 'yes' : 'no');
  return [
    `store ${address}`,
    `creates an object once, of two who try at once: ${yes(report.createsOnce)}`,
    `replaces only what was seen before: ${yes(report.replacesWhatWasSeen)}`,
    `shows at once what was written and removed: ${yes(report.showsAtOnce)}`,
    `a small upload takes ${report.roundTripMs} ms`,
    ...(Math.abs(report.clockAheadMs) > CLOCK_SLACK_MS
      ? [`its clock is ${Math.abs(seconds)} s ${seconds > 0 ? 'ahead of' : 'behind'} that of this host`]
      : []),
    ...(isSingleWriter
      ? ['declared to have a single writer: nothing keeps two hosts from harming each other']
      : []),
  ].join('\n');
}

/** @throws USAGE for anything but the address of a store */
export function mustBeStore(address: string): void {
  if (address.startsWith('s3:')) return;
  throw new CheckpointError('USAGE', `${address} is no object store`, {
    hint: 'name a VM, or a store with --repo s3://BUCKET/PREFIX',
  });
}
