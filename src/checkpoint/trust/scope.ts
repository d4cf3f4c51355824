/**
 * How far the tracker can be trusted for the next checkpoint.
 *
 * `base`     nothing to count from: all pages are stored `compare`  there is a parent, but writes since then
 * may have gone unseen: all pages are read and compared with it `dirty`    the tracker's record is unbroken
 * since the parent: only what it reports is read
 *
 * `dirty` needs a proof and everything else falls back to `compare`, with the reason for the operator.
 */

import { sameLayout, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { LedgerEntry } from './ledger.js';

export interface Scope {
  readonly kind: 'base' | 'compare' | 'dirty';
  /** Empty for `dirty`. */
  readonly reason: string;
}

export interface ScopeFacts {
  readonly forceBase: boolean;
  readonly parent: { readonly id: string; readonly layout: MemoryLayout } | null;
  readonly layout: MemoryLayout;
  readonly ledger: LedgerEntry | undefined;
  readonly tracker: { readonly seesWrites: boolean; readonly token: string };
  /** Why it is not a better one; empty when it is the best or was asked for. */
  readonly trackerReason: string;
  readonly repositoryId: string;
  readonly chain: string;
  /** False when the VM was rewound to a checkpoint that is not there any more. */
  readonly isRewindKnown?: boolean;
}

export function decideScope(facts: ScopeFacts): Scope {
  const { parent, ledger } = facts;
  if (facts.forceBase) return { kind: 'base', reason: 'a new base was asked for' };
  if (parent === null) return { kind: 'base', reason: 'the first checkpoint of this VM in this repository' };
  if (!facts.tracker.seesWrites) {
    const why = facts.trackerReason === '' ? '' : ` (${facts.trackerReason})`;
    return {
      kind: 'compare',
      reason: `no dirty tracker is in use${why}, so all pages are read while the VM stands still`,
    };
  }
  if (!sameLayout(parent.layout, facts.layout)) {
    return {
      kind: 'compare',
      reason: 'memory regions were added, removed or resized since the last checkpoint',
    };
  }
  if (ledger === undefined) return { kind: 'compare', reason: 'nothing is known of this run of the VM yet' };
  if (ledger.token !== facts.tracker.token)
    return { kind: 'compare', reason: 'the dirty tracker was armed anew' };
  if (ledger.state === 'owed') {
    return { kind: 'compare', reason: 'an earlier checkpoint was cut off after it had cleared dirty bits' };
  }
  if (ledger.repositoryId !== facts.repositoryId || ledger.chain !== facts.chain) {
    return { kind: 'compare', reason: 'the last checkpoint of this VM went to another repository or chain' };
  }
  if (ledger.checkpointId !== parent.id) {
    return {
      kind: 'compare',
      reason: 'the last checkpoint of the chain is not the one the tracker counts from',
    };
  }
  if (facts.isRewindKnown === false)
    return { kind: 'compare', reason: 'the checkpoint that the VM was rewound to is not there any more' };
  return { kind: 'dirty', reason: '' };
}
