/**
 * Limits of a disk's throughput as QEMU has them now. They can be changed while it runs (block_set_io_throttle), so a
 * restore compares those of the new QEMU with the record, and sets them before its guest runs.
 *
 * Source: BlockDeviceInfo and BlockIOThrottle of qapi/block-core.json.
 */

import type { Json, JsonObject } from '../../../src/types.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asObject } from '../../qemu/qmp-json.js';

/** A command has to have these. */
const RATES = ['bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd', 'iops_wr'];
const LIMITS = [
  ...RATES.flatMap((rate) => [rate, `${rate}_max`, `${rate}_max_length`]),
  // Bytes that count as one operation.
  'iops_size',
];

/** Numbers by the names of QMP, without those that are 0, and `group`, whose disks share them. Empty: no limit. */
export type DiskLimits = Readonly<Record<string, number | string>>;

/** @param inserted of query-block */
export function limitsOf(inserted: JsonObject): DiskLimits {
  const found: Record<string, number | string> = {};
  for (const key of LIMITS) {
    const value = inserted[key];
    if (typeof value === 'number' && value > 0) found[key] = value;
  }
  const { group } = inserted;
  if (typeof group === 'string' && Object.keys(found).length > 0) found.group = group;
  return found;
}

export interface LimitedDisk {
  readonly device: string;
  readonly path: string;
  readonly limits?: DiskLimits;
}

/**
 * Gives the drives of the new QEMU the limits of the record; those that the record does not know are left.
 * @throws QMP_COMMAND, VM_GONE
 */
export async function applyLimits(
  monitor: Monitor,
  expected: readonly Omit<LimitedDisk, 'path'>[],
  found: readonly (LimitedDisk & { readonly drive: string })[],
): Promise<void> {
  for (const { device, drive, path, limits: now } of found) {
    const limits = expected.find((disk) => disk.device === device)?.limits;
    if (limits === undefined || path === '' || isSame(limits, now ?? {})) continue;
    await monitor.execute('block_set_io_throttle', {
      ...Object.fromEntries(RATES.map((rate) => [rate, 0])),
      ...limits,
      // A drive without a device goes by its own name.
      ...(device === drive ? { device } : { id: device }),
    });
  }
}

function isSame(one: DiskLimits, other: DiskLimits): boolean {
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => one[key] === other[key]);
}

export function isDiskLimits(value: Json): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.entries(asObject(value)).every(([key, limit]) =>
    key === 'group'
      ? typeof limit === 'string' && !limit.includes('\0')
      : LIMITS.includes(key) && Number.isSafeInteger(limit) && (limit as number) > 0,
  );
}
