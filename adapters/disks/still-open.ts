/** A disk that a VM has just let go of may look open for a moment longer. */

import { setTimeout as delay } from 'node:timers/promises';

const POLL_MS = 250;

/** @returns what `findOpen` still finds when the time is over; undefined as soon as it finds nothing */
export async function stillOpen<Found>(
  findOpen: () => Promise<Found | undefined>,
  waitMs: number,
): Promise<Found | undefined> {
  const until = Date.now() + waitMs;
  for (;;) {
    const found = await findOpen();
    if (found === undefined || Date.now() >= until) return found;
    await delay(POLL_MS);
  }
}
