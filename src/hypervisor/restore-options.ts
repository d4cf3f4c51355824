/**
 * Options of restores that belong to one adapter. An adapter declares them as a table with one row for each
 * field of its own type, so that type, command line and help cannot differ:
 *
 *     interface XenRestoreOptions { newName?: string }         what the adapter's restore is given
 *     RestoreOptionTable<XenRestoreOptions>                    how each field is asked for
 *     RestoreSettings                                          what somebody gave, by name of the field
 *
 * What an adapter cannot do is not in its type, and whoever gives it all the same is told whose option it is.
 */

import { CheckpointError } from '../errors.js';

/** One option; `Value` is the type of the field that it fills. */
export interface RestoreOption<Value = RestoreSetting | undefined> {
  /** As the command line has it, such as `--qmp <path>`. Adapters that share an option agree on it. */
  readonly flags: string;
  readonly description: string;
  /** `text` and `list` take a value, a list any number of times; a `flag` takes none. */
  readonly kind: KindOf<NonNullable<Value>>;
  /** The restored VM has other disks than those that were recorded, so none of these is rolled back. */
  readonly replacesDisks?: boolean;
}

export type RestoreSetting = string | true | readonly string[];

type KindOf<Value> = Value extends readonly string[] ? 'list' : Value extends string ? 'text' : 'flag';

/** One option for each field of `Own`. */
export type RestoreOptionTable<Own> = { readonly [Key in keyof Own]-?: RestoreOption<Own[Key]> };

/** The same without the type of the adapter's options: what the core and the command line see. */
export type AnyRestoreOptions = Readonly<Record<string, RestoreOption>>;

/** Options that were given, by name of the field. */
export type RestoreSettings = Readonly<Record<string, RestoreSetting>>;

/**
 * The settings as the adapter's own options.
 * @throws RangeError for a setting that is none of the table's, or is of another kind: who calls checks that
 */
export function readSettings<Own>(table: RestoreOptionTable<Own>, settings: RestoreSettings): Own {
  const known = table as AnyRestoreOptions;
  for (const [key, value] of Object.entries(settings)) {
    const kind = value === true ? 'flag' : typeof value === 'string' ? 'text' : 'list';
    if (known[key]?.kind !== kind) throw new RangeError(`${key} is no ${kind} of these restore options`);
  }
  return settings as Own;
}

/** `--qmp`, of `--qmp <path>`. */
export function flagOf({ flags }: Pick<RestoreOption, 'flags'>): string {
  return flags.split(' ', 1)[0]!;
}

export interface RestoreOptionOwner {
  /** As manifests record it. */
  readonly name: string;
  readonly restoreOptions: AnyRestoreOptions;
}

/**
 * @param owner who is to restore
 * @param all every adapter that is known
 * @throws USAGE naming each option that `owner` does not have, whose it is, and what `owner` has instead
 */
export function refuseForeignSettings(
  owner: RestoreOptionOwner,
  all: readonly RestoreOptionOwner[],
  settings: RestoreSettings,
): void {
  const foreign = Object.keys(settings).filter((key) => owner.restoreOptions[key] === undefined);
  if (foreign.length === 0) return;
  const named = foreign.map((key) => {
    const owners = all.filter(({ restoreOptions }) => restoreOptions[key] !== undefined);
    const option = owners[0]?.restoreOptions[key];
    return option === undefined
      ? key
      : `${flagOf(option)} (an option of ${owners.map(({ name }) => name).join(', ')})`;
  });
  const own = Object.values(owner.restoreOptions).map(flagOf);
  throw new CheckpointError(
    'USAGE',
    `a checkpoint of ${owner.name} is not restored with ${named.join(', ')}`,
    {
      hint: `options of ${owner.name}: ${own.join(', ') || 'none'}`,
    },
  );
}
