/**
 * The tracker that is always right: every page with memory behind it counts as dirty, and the engine compares
 * them all in the stop.
 */

import { randomBytes } from 'node:crypto';

import { CheckpointError } from '../../../src/errors.js';
import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import {
  COMPARES_ALL,
  type DirtyTracker,
  type Harvest,
  type TrackerReport,
} from '../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { absentPages, type PresenceScanner } from '../memory/presence.js';

export const COMPARE_KIND = 'compare';

export const compareReport: TrackerReport = {
  kind: COMPARE_KIND,
  usable: true,
  immuneTo: 'all',
  reason:
    'reads and compares all pages while the VM is suspended: always right, but the stop grows with the memory',
};

export class CompareTracker implements DirtyTracker {
  readonly kind = COMPARE_KIND;
  readonly traits = COMPARES_ALL;
  readonly #layout: MemoryLayout;
  readonly #presence: PresenceScanner;
  #token = '';

  constructor(layout: MemoryLayout, presence: PresenceScanner) {
    this.#layout = layout;
    this.#presence = presence;
  }

  get token(): string {
    this.#mustBeOn();
    return this.#token;
  }

  start(): Promise<void> {
    this.#token ||= `${COMPARE_KIND}:${randomBytes(12).toString('hex')}`;
    return Promise.resolve();
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  collect(): Harvest {
    this.#mustBeOn();
    const dirty = new DirtyBitmap(this.#layout.pageSpan);
    for (const region of this.#layout.regions) dirty.setRange(region.firstPage, region.pageCount);
    return { dirty, absent: absentPages(this.#layout, this.#presence.present()) };
  }

  /** Nothing to keep: the next collect reports all pages. */
  putBack(): void {
    this.#mustBeOn();
  }

  stop(): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  close(): void {
    this.#token = '';
  }

  #mustBeOn(): void {
    if (this.#token === '') throw new CheckpointError('TRACKER_OFF', `tracker ${this.kind} is not started`);
  }
}
