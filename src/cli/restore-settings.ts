/** Options of `cairn restore` that belong to adapters: declared by these, grouped in the help by whose they are. */

import { Option, type Command } from 'commander';

import type { Hypervisor } from '../hypervisor/hypervisor.js';
import type { RestoreOption, RestoreSetting, RestoreSettings } from '../hypervisor/restore-options.js';

type Owner = Pick<Hypervisor, 'name' | 'restoreOptions'>;

/** An option, by all the adapters that have it. */
interface SharedOption {
  readonly key: string;
  readonly option: RestoreOption;
  readonly owners: readonly string[];
}

/** Adapters that share an option agree on its name and its flags: who gives it need not say for whom. */
function sharedOptions(hypervisors: readonly Owner[]): readonly SharedOption[] {
  const shared = new Map<string, SharedOption>();
  for (const { name, restoreOptions } of hypervisors) {
    for (const [key, option] of Object.entries(restoreOptions)) {
      const before = shared.get(key);
      if (before !== undefined && before.option.flags !== option.flags)
        throw new RangeError(`${name} calls ${before.option.flags} ${option.flags}`);
      shared.set(key, { key, option: before?.option ?? option, owners: [...(before?.owners ?? []), name] });
    }
  }
  return [...shared.values()];
}

export function addRestoreSettings(to: Command, hypervisors: readonly Owner[]): Command {
  for (const { option, owners } of sharedOptions(hypervisors)) {
    const { flags, description, kind } = option;
    const added = new Option(flags, description).helpGroup(`Of checkpoints of ${owners.join(', ')}:`);
    if (kind === 'list') added.argParser(append);
    to.addOption(added);
  }
  return to;
}

/** Collects the values of an option that may be given several times. */
function append(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}

/** Settings that were given. */
export function restoreSettingsOf(options: object, hypervisors: readonly Owner[]): RestoreSettings {
  const given = options as Readonly<Record<string, RestoreSetting | undefined>>;
  return Object.fromEntries(
    sharedOptions(hypervisors).flatMap(({ key, option }) => {
      const value = given[new Option(option.flags).attributeName()];
      return value === undefined ? [] : [[key, value]];
    }),
  );
}
