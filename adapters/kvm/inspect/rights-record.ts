/**
 * The rights of a QEMU as a manifest holds them (docs/format.md, machine), read back with care: they come out
 * of a repository.
 */

import type { Json, JsonObject } from '../../../src/types.js';
import type { CapabilitySets, ProcessRights } from './process-rights.js';

const CAPABILITIES = /^[0-9a-f]{1,16}$/;
const MAX_ID = 2 ** 32 - 1;
const MAX_GROUPS = 65_536;

export function rightsRecord(rights: ProcessRights): JsonObject {
  const { capabilities, openedMonitorAs, ...rest } = rights;
  const hex = Object.fromEntries(
    Object.entries(capabilities as unknown as Record<string, bigint>).map(([set, bits]) => [
      set,
      bits.toString(16),
    ]),
  );
  return {
    ...rest,
    capabilities: hex,
    ...(openedMonitorAs === undefined ? {} : { openedMonitorAs: { ...openedMonitorAs } }),
  };
}

/** @returns undefined when there is no record, or none that can be understood whole */
export function readRights(value: Json | undefined): ProcessRights | undefined {
  if (!isObject(value)) return undefined;
  const users = idsIn(value.users, 4);
  const groups = idsIn(value.groups, 4);
  const moreGroups = idsIn(value.moreGroups);
  const capabilities = capabilitiesIn(value.capabilities);
  const { noNewPrivileges, seccomp, label, limits } = value;
  if (users === undefined || groups === undefined || moreGroups === undefined) return undefined;
  if (capabilities === undefined || typeof noNewPrivileges !== 'boolean') return undefined;
  if (seccomp !== 0 && seccomp !== 1 && seccomp !== 2) return undefined;
  if (typeof label !== 'string' || !Array.isArray(limits)) return undefined;
  const opened = openedIn(value.openedMonitorAs);
  return {
    ...{ users, groups, moreGroups, capabilities, noNewPrivileges, seccomp, label },
    limits: limits.filter((limit) => typeof limit === 'string'),
    ...(opened === undefined ? {} : { openedMonitorAs: opened }),
  };
}

function openedIn(value: Json | undefined): ProcessRights['openedMonitorAs'] {
  if (!isObject(value)) return undefined;
  const [user, group] = idsIn([value.user ?? null, value.group ?? null], 2) ?? [];
  return user === undefined || group === undefined ? undefined : { user, group };
}

/** @param count how many there must be; any number up to the kernel's bound without it */
function idsIn(value: Json | undefined, count?: number): readonly number[] | undefined {
  if (!Array.isArray(value) || value.length > MAX_GROUPS) return undefined;
  if (count !== undefined && value.length !== count) return undefined;
  const isId = (id: Json): boolean => Number.isInteger(id) && Number(id) >= 0 && Number(id) <= MAX_ID;
  return value.every(isId) ? (value as number[]) : undefined;
}

function capabilitiesIn(value: Json | undefined): CapabilitySets | undefined {
  if (!isObject(value)) return undefined;
  const set = (name: keyof CapabilitySets): bigint | undefined => {
    const text = value[name];
    return typeof text === 'string' && CAPABILITIES.test(text) ? BigInt(`0x${text}`) : undefined;
  };
  const [inheritable, permitted, effective] = [set('inheritable'), set('permitted'), set('effective')];
  const [bounding, ambient] = [set('bounding'), set('ambient')];
  if (inheritable === undefined || permitted === undefined || effective === undefined) return undefined;
  if (bounding === undefined || ambient === undefined) return undefined;
  return { inheritable, permitted, effective, bounding, ambient };
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
