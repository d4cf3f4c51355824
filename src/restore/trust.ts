/**
 * Whether a checkpoint may run programs on this host. A manifest names the program, its arguments and the
 * disks; a repository does not prove who wrote it. So a restore does what a manifest says without asking only
 * when this host took the checkpoint, which it knows by its own key.
 */

import { CheckpointError } from '../errors.js';
import { isSealedWith } from '../format/host-seal.js';
import type { Manifest } from '../format/manifest.js';
import { findHostKey } from '../host/host-key.js';
import type { RestorePlan } from '../hypervisor/restore.js';

/** Asks whether to go on. What it is shown comes out of the manifest. */
export type TrustQuestion = (plan: RestorePlan) => Promise<boolean>;

/**
 * @param plan undefined where nobody knows what the restore would do
 * @param ask absent where nobody can be asked
 * @throws RESTORE_UNTRUSTED
 */
export async function refuseUntrusted(
  manifest: Manifest,
  plan: RestorePlan | undefined,
  ask: TrustQuestion | undefined,
): Promise<void> {
  const shown = plan ?? { commands: [], details: ['(the adapter does not say what it would do)'], disks: [] };
  const actsHere = [shown.commands, shown.details, shown.disks].some(({ length }) => length > 0);
  if (!actsHere) return;
  let problem: unknown;
  try {
    const key = await findHostKey();
    if (key !== undefined && isSealedWith(manifest, key)) return;
  } catch (error) {
    // Without a key that can be relied on, this host knows none of its checkpoints.
    problem = error;
  }
  if (ask !== undefined && (await ask(shown))) return;
  const program = shown.commands[0]?.[0];
  const would =
    program === undefined
      ? 'a restore would start what it names and write to its disks'
      : `a restore would run ${program}`;
  throw new CheckpointError(
    'RESTORE_UNTRUSTED',
    `checkpoint ${manifest.id} was not taken on this host, and ${would}`,
    {
      ...(problem === undefined ? {} : { cause: problem }),
      hint: 'see "cairn show --json" for the machine that it names; --trust-machine restores it all the same',
      detail: { checkpointId: manifest.id },
    },
  );
}
