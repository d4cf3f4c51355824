/** What a restore of a domain of Xen would have its tools run and open, before anything is done. */

import type { CheckpointSource, RestorePlan, RestoreRequest } from '../../src/hypervisor/restore.js';
import type { Json } from '../../src/types.js';

/** Keys whose values are arguments, of QEMU and of boot loaders, whatever stands in them. */
const ARGUMENTS = /extra|args|cmdline|device_model/;

export function planRestore(source: CheckpointSource, { keepDisks }: RestoreRequest): RestorePlan {
  const { machine, disks } = source;
  return {
    commands: [['xl', 'restore']],
    details: textsIn(machine.config, '').flatMap(({ path, text }) =>
      text !== '' && (text.includes('/') || ARGUMENTS.test(path)) ? [`${path}: ${text}`] : [],
    ),
    disks: keepDisks ? [] : disks.map(({ diskId, driver, path }) => `${diskId}: ${driver} ${path}`),
  };
}

/** All texts of a configuration, with the keys that lead to them. */
function textsIn(value: Json | undefined, path: string): readonly { path: string; text: string }[] {
  if (typeof value === 'string') return [{ path, text: value }];
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    textsIn(inner, path === '' ? key : `${path}.${key}`),
  );
}
