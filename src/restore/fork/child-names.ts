/** What the children of a fork are called. A name is that of a VM, of its folder, and of its chain. */

import { CheckpointError } from '../../errors.js';

/** Far above what a host runs, and few enough that all are planned before one is started. */
export const MOST_CHILDREN = 1000;
const PREFIX = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;

/** @throws USAGE */
export function childNames(prefix: string, count: number): readonly string[] {
  if (!Number.isInteger(count) || count < 1 || count > MOST_CHILDREN)
    throw new CheckpointError('USAGE', `a fork has 1 to ${MOST_CHILDREN} children, not ${count}`);
  if (!PREFIX.test(prefix)) {
    throw new CheckpointError('USAGE', `children cannot be called after "${prefix}"`, {
      hint: 'name them with --name, by letters, digits, "-", "_" and "."',
    });
  }
  return Array.from({ length: count }, (_, index) => `${prefix}-${index}`);
}
