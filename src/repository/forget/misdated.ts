/**
 * Checkpoints that say they were taken later than it is now: a clock was wrong when they were taken, or is
 * wrong now. How old they are is not known, so no policy may remove them, and none may count from them: with
 * one of them as the newest, everything else would be too old.
 */

import { CheckpointError } from '../../errors.js';
import type { Manifest } from '../../format/manifest.js';

/** Clocks of hosts that are kept by NTP differ by less. */
const ALLOWANCE_MS = 10 * 60_000;
/** Checkpoints that a message names. */
const NAMED = 3;

/** @param nowMs clock of this host, in ms since 1970 */
export function isMisdated({ time }: Manifest, nowMs: number): boolean {
  // What is no time at all is not plausible either.
  return !(Date.parse(time) <= nowMs + ALLOWANCE_MS);
}

/** Names them, for a warning or a question. @param misdated at least one */
export function misdatedText(misdated: readonly Manifest[], nowMs: number): string {
  const named = misdated.slice(0, NAMED).map(({ id, time }) => `${id} (${time})`);
  const more = misdated.length - named.length;
  const list = more > 0 ? `${named.join(', ')} and ${more} more` : named.join(', ');
  const now = new Date(nowMs).toISOString();
  const are = misdated.length === 1 ? 'one checkpoint is' : `${misdated.length} checkpoints are`;
  return `${are} dated later than now, ${now}: ${list}; the clock was wrong then, or is now`;
}

export function misdatedError(chain: string, misdated: readonly Manifest[], nowMs: number): CheckpointError {
  return new CheckpointError('CHECKPOINT_MISDATED', `chain ${chain}: ${misdatedText(misdated, nowMs)}`, {
    hint: 'set the clock, or forget them by their ids; --keep-misdated keeps them and counts from the newest of the others',
    detail: { chain, checkpointIds: misdated.map(({ id }) => id) },
  });
}
