/**
 * The program `zfs` of OpenZFS: what it says of volumes and snapshots, as `zfs list -H -p` writes it
 * (zfs-list(8)).
 */

import { failureOf, type RunTool, type ToolResult } from '../run-tool.js';

const LIST_LIMIT_MS = 15_000;

export interface ZfsVolume {
  readonly name: string;
  /**
   * The number that ZFS gave the volume. A copy that was sent and received has the same, another volume of
   * its name has another.
   */
  readonly guid: string;
}

export interface ZfsSnapshot {
  /** `POOL/VOLUME@NAME`, or `POOL/VOLUME#NAME` for a bookmark. */
  readonly name: string;
  /** Number of the transaction group that it was made in: they follow one another in time. */
  readonly createTxg: number;
}

export type Answer<Value> = { readonly value: Value } | { readonly whyNot: string };

/**
 * `POOL/VOLUME`, at most 255 characters (zfsconcepts(7)). What is recorded in a repository is checked before
 * it becomes an argument.
 */
const VOLUME = /^(?=.{3,200}$)[A-Za-z][A-Za-z0-9_.:-]*(\/[A-Za-z0-9_.:][A-Za-z0-9_.:-]*)+$/;
const SNAPSHOT = /^cairn-[0-9A-Za-z-]{1,40}$/;

export function isVolumeName(name: string): boolean {
  return VOLUME.test(name);
}

export function isSnapshotName(name: string): boolean {
  return SNAPSHOT.test(name);
}

export function poolOf(volume: string): string {
  return volume.slice(0, volume.indexOf('/'));
}

/** @returns major and minor number of the kernel's module, such as `2.1` */
export async function moduleVersion(run: RunTool): Promise<Answer<string>> {
  const result = await run('zfs', ['version'], LIST_LIMIT_MS);
  if (result.kind !== 'done') return { whyNot: zfsFailure('version', result) };
  const version = /^zfs-kmod-(?<version>\d+\.\d+)/m.exec(result.stdout)?.groups?.version;
  return version === undefined ? { whyNot: 'its version is not known' } : { value: version };
}

export async function volumeOf(run: RunTool, name: string): Promise<Answer<ZfsVolume>> {
  const args = ['list', '-H', '-p', '-t', 'volume', '-o', 'name,guid', name];
  const result = await run('zfs', args, LIST_LIMIT_MS);
  if (result.kind !== 'done') return { whyNot: zfsFailure('list', result) };
  const [row] = rowsOf(result.stdout);
  return row === undefined
    ? { whyNot: `zfs list says nothing of ${name}` }
    : { value: { name: row[0]!, guid: row[1] ?? '' } };
}

/** Snapshots and bookmarks of a volume, the oldest first. */
export async function snapshotsOf(run: RunTool, volume: string): Promise<Answer<readonly ZfsSnapshot[]>> {
  const args = ['list', '-H', '-p', '-t', 'snapshot,bookmark', '-d', '1', '-o', 'name,createtxg', volume];
  const result = await run('zfs', args, LIST_LIMIT_MS);
  if (result.kind !== 'done') return { whyNot: zfsFailure('list', result) };
  const all = rowsOf(result.stdout).map(([name, txg]) => ({ name: name!, createTxg: Number(txg) }));
  return { value: all.sort((a, b) => a.createTxg - b.createTxg) };
}

/** What went wrong, in words; empty when nothing did. */
export function zfsFailure(command: string, result: ToolResult): string {
  return result.kind === 'missing'
    ? 'zfs is not installed (package zfsutils-linux)'
    : failureOf(`zfs ${command}`, result);
}

function rowsOf(text: string): readonly (readonly string[])[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split('\t'));
}
