/**
 * As whom a restored QEMU starts: with the rights that the checkpoint records, or not at all.
 *
 *     recorded as user 64055           setpriv --reuid 64055 ... env -i ... qemu     by a root Cairn
 *     recorded as whom Cairn runs      qemu
 *     -runas on its command line       qemu starts as root and gives its rights up itself
 *     what cannot be put back          refused: RESTORE_RIGHTS; --as-root insists
 *
 * A command line is what a process says of itself: one that was taken over can write `-runas` into it. So
 * QEMU is started as root for that only when its monitor's socket was opened by root, which the kernel
 * remembers.
 *
 * Once it runs, its rights are read and held against the record (`refuseMoreRights`), before it gets any
 * guest memory.
 */

import { CheckpointError } from '../../../src/errors.js';
import { valueOf, type QemuOption } from '../../disks/qcow2/command-line.js';
import type { ProcessRights } from '../inspect/process-rights.js';

export interface StartRights {
  /** Effective user with which the program begins: whoever else can change the program could become that. */
  readonly user: number;
  /** What a program of util-linux has to change before QEMU starts; undefined when nothing. */
  readonly change: RightsChange | undefined;
  /** What QEMU must not have more than once it runs; undefined when the caller's rights are what it gets. */
  readonly atMost: ProcessRights | undefined;
  /** What is not as it was, for the operator. */
  readonly notes: readonly string[];
}

/** What is set before the program starts. */
export interface RightsChange {
  /** Undefined: those of the caller. Only root can set others. */
  readonly ids: StartIds | undefined;
  readonly noNewPrivileges: boolean;
}

export type StartIds = Pick<ProcessRights, 'users' | 'groups' | 'moreGroups' | 'capabilities'>;

export interface RightsWanted {
  /** Undefined in checkpoints of older versions. */
  readonly recorded: ProcessRights | undefined;
  readonly options: readonly QemuOption[];
  /** Insists on the rights of the caller. */
  readonly asCaller: boolean;
}

/** @param own rights of this process @throws RESTORE_RIGHTS naming what would be given away or is missing */
export function planRights(wanted: RightsWanted, own: ProcessRights): StartRights {
  const { recorded, options, asCaller } = wanted;
  const caller = effectiveUser(own);
  if (asCaller)
    return { user: caller, change: undefined, atMost: undefined, notes: differences(recorded, own) };
  if (recorded === undefined) {
    if (caller !== 0) return { user: caller, change: undefined, atMost: undefined, notes: [] };
    throw refused('the checkpoint does not say as whom its QEMU ran, and here it would run as root');
  }
  refuseLostConfinement(recorded, options, own);
  const ids = startsAsRoot(options, recorded) ? asRoot(recorded) : recorded;
  const user = ids.users[1]!;
  if (caller !== 0 && user !== caller)
    throw refused(`its QEMU started as user ${user}, which user ${caller} cannot do`);
  const notes = recorded.limits
    .filter((limit) => !own.limits.includes(limit))
    .map((limit) => `the limit of its control group is not put back: ${limit}`);
  // Who is not root has no more to give away than itself.
  if (caller !== 0) return { user, change: changeOf(undefined, recorded, own), atMost: undefined, notes };
  const change = changeOf(isAlike(ids, own) ? undefined : within(ids, own), recorded, own);
  return { user, change, atMost: recorded, notes };
}

function changeOf(
  ids: StartIds | undefined,
  { noNewPrivileges }: ProcessRights,
  own: ProcessRights,
): RightsChange | undefined {
  if (ids === undefined && (!noNewPrivileges || own.noNewPrivileges)) return undefined;
  return { ids, noNewPrivileges };
}

const NAMES_OF_IDS = { users: 'user', groups: 'group', moreGroups: 'supplementary groups' } as const;

/** @param now rights of the new QEMU, which runs no guest yet @throws RESTORE_RIGHTS */
export function refuseMoreRights(now: ProcessRights, recorded: ProcessRights): void {
  const more: string[] = [];
  for (const ids of ['users', 'groups', 'moreGroups'] as const) {
    const added = now[ids].filter((id) => !recorded[ids].includes(id));
    if (added.length > 0) more.push(`${NAMES_OF_IDS[ids]} ${[...new Set(added)].join(' ')}`);
  }
  for (const set of ['permitted', 'effective', 'ambient', 'bounding'] as const) {
    const added = now.capabilities[set] & ~recorded.capabilities[set];
    if (added !== 0n) more.push(`${set} capabilities ${added.toString(16)}`);
  }
  if (recorded.noNewPrivileges && !now.noNewPrivileges) more.push('new privileges');
  if (recorded.seccomp > now.seccomp) more.push('all system calls');
  if (more.length === 0) return;
  throw refused(`the new QEMU has rights that the recorded one had not: ${more.join(', ')}`);
}

/** Leaves out of a program's rights what the caller does not have itself. */
function within({ capabilities, ...ids }: StartIds, own: ProcessRights): StartIds {
  const { inheritable, ambient, permitted, bounding } = capabilities;
  const isRoot = ids.users[1] === 0;
  const limit = bounding & own.capabilities.bounding;
  return {
    ...ids,
    capabilities: {
      ...capabilities,
      // A program that root starts gets all that it is bounded by, so the bound is what it had.
      bounding: isRoot ? limit & permitted : limit,
      inheritable: (inheritable | ambient) & limit,
      ambient: isRoot ? 0n : ambient & limit,
    },
  };
}

function isAlike(ids: StartIds, own: ProcessRights): boolean {
  const lists = ['users', 'groups', 'moreGroups'] as const;
  const sets = ['inheritable', 'permitted', 'bounding', 'ambient'] as const;
  return (
    lists.every((list) => ids[list].join() === own[list].join()) &&
    sets.every((set) => ids.capabilities[set] === own.capabilities[set])
  );
}

/** QEMU is to become another user by itself, and for that has to be root first. */
function startsAsRoot(options: readonly QemuOption[], { users, openedMonitorAs }: ProcessRights): boolean {
  const changesUser = options.some(
    ({ name, value = '' }) =>
      name === 'runas' || (name === 'run-with' && valueOf(value, 'user') !== undefined),
  );
  if (!changesUser || users[1] === 0) return false;
  if (openedMonitorAs?.user === 0) return true;
  throw refused(
    `its command line has QEMU start as root and become user ${users[1] ?? 0}, but nothing shows that it was started by root`,
  );
}

/** What QEMU needs until it gives its rights up: root's ids, within the bounds that it still has. */
function asRoot({ capabilities, openedMonitorAs }: ProcessRights): StartIds {
  const group = openedMonitorAs?.group ?? 0;
  const { bounding } = capabilities;
  return {
    users: [0, 0, 0, 0],
    groups: [group, group, group, group],
    moreGroups: [],
    capabilities: { inheritable: 0n, permitted: bounding, effective: bounding, bounding, ambient: 0n },
  };
}

/** @throws RESTORE_RIGHTS for what held the recorded QEMU back and would not hold the new one */
function refuseLostConfinement(
  recorded: ProcessRights,
  options: readonly QemuOption[],
  own: ProcessRights,
): void {
  if (isConfined(recorded.label) && recorded.label !== own.label) {
    throw refused(
      `its QEMU was confined as "${recorded.label}" by a security module, which cannot be put back`,
    );
  }
  const hasOwnFilter = options.some(
    ({ name, value = '' }) => name === 'sandbox' && /^(?:enable=)?(?:on|yes)(?:,|$)/.test(value),
  );
  if (recorded.seccomp > own.seccomp && !hasOwnFilter)
    throw refused('its QEMU ran under a seccomp filter of its manager, which cannot be put back');
}

/**
 * AppArmor calls what it does not confine "unconfined", and writes the mode behind the name of a profile;
 * one that only complains confines nothing. A domain of SELinux is the third part of a context.
 */
function isConfined(label: string): boolean {
  if (label === '' || label === 'unconfined' || / \((?:complain|unconfined)\)$/.test(label)) return false;
  return !/^[^:]*:[^:]*:(?:unconfined|kernel|initrc|init)(?:_service)?_t(?::|$)/.test(label);
}

function differences(recorded: ProcessRights | undefined, own: ProcessRights): readonly string[] {
  const as = `QEMU runs as user ${effectiveUser(own)}`;
  if (recorded === undefined) return [`${as}; as whom it ran is not recorded`];
  const was = effectiveUser(recorded);
  return [
    ...(was === effectiveUser(own) ? [] : [`${as}, and ran as user ${was}`]),
    ...(isConfined(recorded.label) && recorded.label !== own.label
      ? [`QEMU is not confined as "${recorded.label}" any more`]
      : []),
    ...(recorded.seccomp > own.seccomp ? ['QEMU may run without the seccomp filter that it had'] : []),
  ];
}

function effectiveUser({ users }: Pick<ProcessRights, 'users'>): number {
  return users[1] ?? 0;
}

function refused(text: string): CheckpointError {
  return new CheckpointError('RESTORE_RIGHTS', text, {
    hint: 'restore as the user that ran it or through its manager; --as-root starts QEMU with all rights of the caller',
  });
}
