/** What lvm2 says of its logical volumes (`lvs --reportformat json`, lvmreport(7)). */

import { stat } from 'node:fs/promises';

import { failureOf, type RunTool } from '../run-tool.js';

export interface LogicalVolume {
  readonly vgName: string;
  readonly name: string;
  readonly uuid: string;
  readonly sizeBytes: number;
  /** linear, striped, thin, snapshot and so on. */
  readonly kind: string;
  /** The pool of a thin volume. */
  readonly pool: string;
  /** The volume that a snapshot was taken of. */
  readonly origin: string;
  /** How full a snapshot or a pool is; 0 for others, and for a snapshot that is not active. */
  readonly dataPercent: number;
  /** What a snapshot or a pool takes up for the first write to any part of it; 0 for others. */
  readonly chunkBytes: number;
  /** Whether a thick snapshot has overflowed, or lost its storage. */
  readonly isInvalid: boolean;
  readonly isOpen: boolean;
  /** Whether the volume group is one of other hosts as well. */
  readonly isShared: boolean;
  /** `major:minor` while it is active, else empty. */
  readonly device: string;
}

const FIELDS = [
  'vg_name',
  'lv_name',
  'lv_uuid',
  'lv_size',
  'segtype',
  'pool_lv',
  'origin',
  'data_percent',
  'chunk_size',
  'lv_snapshot_invalid',
  'lv_attr',
  'lv_device_open',
  'vg_attr',
  'lv_kernel_major',
  'lv_kernel_minor',
];
const LIST_LIMIT_MS = 20_000;

/** Names as lvm(8) allows them. What is recorded in a repository is checked before it becomes an argument. */
const NAME = /^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$/;

export function isVolumeName(name: string): boolean {
  return NAME.test(name) && name !== '.' && name !== '..';
}

export type VolumeList = { readonly volumes: readonly LogicalVolume[] } | { readonly whyNot: string };

/** All that this host knows. */
export async function listVolumes(run: RunTool): Promise<VolumeList> {
  const result = await run(
    'lvm',
    ['lvs', '--reportformat', 'json', '--units', 'b', '--nosuffix', '--all', '-o', FIELDS.join(',')],
    LIST_LIMIT_MS,
  );
  if (result.kind !== 'done') return { whyNot: failureOf('lvm lvs', result) };
  const { report } = JSON.parse(result.stdout) as { report?: readonly { lv?: readonly Row[] }[] };
  const rows = report?.flatMap(({ lv = [] }) => lv) ?? [];
  return { volumes: rows.map(volumeOf) };
}

type Row = Readonly<Record<string, string | undefined>>;

function volumeOf(row: Row): LogicalVolume {
  const text = (name: string): string => row[name] ?? '';
  const isActive = Number(row.lv_kernel_major ?? '-1') >= 0;
  return {
    vgName: text('vg_name'),
    name: text('lv_name'),
    uuid: text('lv_uuid'),
    sizeBytes: Number(text('lv_size')),
    // A volume with thick snapshots stays what it is; a thick snapshot is a linear one with an origin.
    kind: text('segtype'),
    pool: text('pool_lv'),
    origin: text('origin'),
    dataPercent: Number(text('data_percent')) || 0,
    chunkBytes: Number(text('chunk_size')) || 0,
    // A snapshot that cannot be used counts too: state I or S of lv_attr (lvs(8)).
    isInvalid: text('lv_snapshot_invalid') === 'snapshot invalid' || /^....[IS]/.test(text('lv_attr')),
    isOpen: text('lv_device_open') === 'open',
    isShared: /^.....[cs]/.test(text('vg_attr')),
    device: isActive ? `${text('lv_kernel_major')}:${text('lv_kernel_minor')}` : '',
  };
}

/** `major:minor` of the block device at `path`; empty when it is none. */
export async function deviceNumber(path: string): Promise<string> {
  try {
    const found = await stat(path);
    if (!found.isBlockDevice()) return '';
    // makedev of glibc: the major number in bits 8 to 19, the minor in 0 to 7 and from 20 on.
    return `${(found.rdev >>> 8) & 0xfff}:${(found.rdev & 0xff) | ((found.rdev >>> 12) & 0xfff00)}`;
  } catch {
    return '';
  }
}
