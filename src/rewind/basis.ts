/**
 * What the memory of the VM is known to be, before it is rewound: each page is as it was in one of some checkpoints, or
 * is marked by the tracker as written since. That is what makes a rewind write the pages alone that differ.
 *
 *     ledger clean, counts from X              X
 *     the same, rewound to R since             R
 *     a rewind to T from X that was cut off    X or T: what the note says
 *     a rewind whose record was lost since     nothing is known: every page is written
 */

import type { LentVm } from '../checkpoint/session.js';
import { CheckpointError, isCheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import { sameLayout } from '../hypervisor/memory-layout.js';
import type { RewindNote } from '../hypervisor/rewind.js';
import type { PageMap } from '../repository/read/page-map.js';
import type { CallOptions } from '../storage/backend.js';

export interface Basis {
  /** Every page that is not marked is as in one of these. Undefined when nothing is known. */
  readonly maps: readonly PageMap[] | undefined;
  /** The ids of these; empty when nothing is known. */
  readonly ids: readonly string[];
}

/** @throws REWIND_REFUSED when too little is known, and it is not a rewind that was cut off */
export async function basisOf(
  lent: LentVm,
  note: RewindNote | undefined,
  options: CallOptions,
): Promise<Basis> {
  const { ledger, tracker, repository, vmName } = lent;
  const token = await tracker.beginCheckpoint();
  if (note !== undefined) {
    const isKnown = note.token === token && note.repositoryId === repository.id && note.chain === vmName;
    const maps = isKnown && note.mayHold.length > 0 ? await mapsOf(lent, note.mayHold, options) : undefined;
    return { maps, ids: maps === undefined ? [] : note.mayHold };
  }
  const entry = await ledger.read();
  const isHere = entry?.token === token && entry.repositoryId === repository.id && entry.chain === vmName;
  if (!isHere || entry.state !== 'clean') throw untracked();
  const id = entry.rewoundTo ?? entry.checkpointId;
  const maps = await mapsOf(lent, [id], options);
  if (maps === undefined) throw untracked();
  return { maps, ids: [id] };
}

/** Undefined when one of them is not there any more, or is of another layout. */
async function mapsOf(
  { repository, vmName, layout }: LentVm,
  ids: readonly string[],
  options: CallOptions,
): Promise<readonly PageMap[] | undefined> {
  const maps: PageMap[] = [];
  for (const id of ids) {
    const manifest = await found(repository.find(id, vmName, options));
    if (manifest === undefined || !sameLayout(manifest.layout, layout)) return undefined;
    maps.push(await repository.loadMap(manifest, options));
  }
  return maps;
}

async function found(finding: Promise<Manifest>): Promise<Manifest | undefined> {
  try {
    return await finding;
  } catch (error) {
    if (isCheckpointError(error, 'CHECKPOINT_NOT_FOUND')) return undefined;
    throw error;
  }
}

function untracked(): CheckpointError {
  return new CheckpointError(
    'REWIND_REFUSED',
    'no rewind: it is not known what was written to the VM since its last checkpoint in this chain',
    {
      hint: 'take a checkpoint first, which --undo does: the tracker counts from that',
      detail: { reason: 'UNTRACKED' },
    },
  );
}
