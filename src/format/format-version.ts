/**
 * Version law of docs/format.md: one number for the repository, and names of features that a reader must
 * know.
 */

import { CheckpointError } from '../errors.js';

export const FORMAT_NAME = 'cairn-repository';
export const FORMAT_VERSION = 1;
/** A manifest with `frozen` requires this feature: the guest has to be thawed after a restore. */
export const FROZEN_GUEST_FEATURE = 'frozen-guest';
/** Features of version 1 that a record may demand. */
const KNOWN_FEATURES: readonly string[] = [FROZEN_GUEST_FEATURE];

/** @throws REPO_VERSION when `key` was written by a newer version, or demands what this one does not know */
export function checkVersion(key: string, version: number, requires: readonly string[]): void {
  const unknown = requires.filter((feature) => !KNOWN_FEATURES.includes(feature));
  if (version === FORMAT_VERSION && unknown.length === 0) return;
  const what = version === FORMAT_VERSION ? `features ${unknown.join(', ')}` : `format version ${version}`;
  throw new CheckpointError(
    'REPO_VERSION',
    `${key} needs ${what}; this program knows version ${FORMAT_VERSION}`,
    {
      hint: 'use a newer version of cairn',
      detail: { key, version, requires },
    },
  );
}
