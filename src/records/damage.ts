/** REPO_DAMAGED: what is wrong, in which object. Texts carry keys and numbers, never content. */

import { CheckpointError, describeError, isCheckpointError } from '../errors.js';

const DAMAGE_HINT = 'run "cairn verify" to see everything that is affected; other checkpoints may be whole';

/**
 * @param key storage key of the object
 * @param where further place in it, such as { frame: 3, record: 17 }
 */
export function damaged(
  key: string,
  what: string,
  where: Readonly<Record<string, number>> = {},
  cause?: unknown,
): CheckpointError {
  const place = Object.entries(where)
    .map(([name, value]) => `, ${name} ${value}`)
    .join('');
  return new CheckpointError('REPO_DAMAGED', `${key}${place}: ${what}`, {
    hint: DAMAGE_HINT,
    detail: { key, ...where },
    cause,
  });
}

/** An object that cannot be read as what it should be. */
export interface DamagedObject {
  readonly key: string;
  /** Names the object, and the place in it where known. */
  readonly message: string;
}

/**
 * Turns an error about one object into an entry of a list; anything that is not about damage is thrown on.
 */
export function asDamagedObject(key: string, error: unknown): DamagedObject {
  if (
    isCheckpointError(error) &&
    ['REPO_DAMAGED', 'REPO_VERSION', 'STORAGE_NOT_FOUND'].includes(error.code)
  ) {
    return { key, message: describeError(error) };
  }
  throw error;
}
