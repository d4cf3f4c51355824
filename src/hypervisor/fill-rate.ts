/** How fast a VM is filled beside what its guest asks for. */

import { CheckpointError } from '../errors.js';

/** 12 GiB a minute. Chosen, not measured: on how busy a host it is too much decides. */
const DEFAULT_MIB = 200;
const MOST_MIB = 1_000_000;

/** @param text MiB a second, as it was given @returns bytes a second @throws USAGE */
export function fillRateOf(text: string | undefined): number {
  const mib = text === undefined ? DEFAULT_MIB : Number(text);
  if (mib > 0 && mib <= MOST_MIB) return mib * 2 ** 20;
  throw new CheckpointError('USAGE', `"${text ?? ''}" is no rate in MiB a second`, {
    hint: `write a number above 0, such as --fill-rate ${DEFAULT_MIB}`,
  });
}
