/** Filling a file system until nothing more can be written to it. */

import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** Name of the folder that the fillers below write to; it is there already. */
export const FILLER = 'filler';

let fileCount = 0;

/** @param owner who fills it: root may take blocks that are reserved */
export function fillBlocks(mount: string, owner: Owner): void {
  const write = (size: string, ...more: readonly string[]): boolean => {
    const file = join(mount, FILLER, `blocks-${fileCount++}`);
    const args = ['if=/dev/zero', `of=${file}`, `bs=${size}`, 'conv=fsync', ...more];
    return spawnSync('dd', args, { ...owner, stdio: 'ignore' }).status === 0;
  };
  // The file system may hold some back until it has written out what it has.
  for (let round = 0; round < 20; round++) {
    for (const size of ['1M', '4k']) write(size);
    execFileSync('sync', ['-f', mount]);
    if (!write('4k', 'count=1')) return;
  }
  throw new Error(`${mount} cannot be filled`);
}

export function fillInodes(mount: string, owner: Owner): void {
  const script = `n=${fileCount}; while : >"$0/inode-$n"; do n=$((n + 1)); done`;
  spawnSync('sh', ['-c', script, join(mount, FILLER)], { ...owner, stdio: 'ignore' });
  const { ffree } = statfsSync(mount);
  if (ffree > 0) throw new Error(`${mount} has ${ffree} inodes left`);
}

/** Gives back what was taken. */
export function emptyFiller(mount: string): void {
  const folder = join(mount, FILLER);
  for (const name of readdirSync(folder)) rmSync(join(folder, name));
  execFileSync('sync', ['-f', mount]);
}
