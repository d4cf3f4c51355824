/** The disks of a machine that comes out of a file or a stream: whoever has them, it is nobody here. */

import type { RecordedDisks, VmDisks } from '../hypervisor/disks.js';

const NOTHING: RecordedDisks = {
  isRemovable: () => false,
  drop: () => Promise.resolve(),
  remedy: ({ path, driver }) => `see to the snapshot of ${path} by ${driver} where the machine ran`,
  needs: () => [],
  overwrites: () => undefined,
};

export const NO_DISKS: VmDisks = {
  drivers: [],
  list: () => Promise.resolve([]),
  checkStorage: () => Promise.resolve(false),
  plan: () => [],
  snapshot: () => Promise.resolve([]),
  makeDurable: () => Promise.resolve(),
  drop: () => Promise.resolve(),
  recorded: () => NOTHING,
};
