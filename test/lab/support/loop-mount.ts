/**
 * A real file system in a file, mounted through a loop device. Unmounted even when the test runner gives up.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { whyNoPackages } from './lab-files.js';

export type LoopFileSystem = 'btrfs' | 'xfs' | 'ext4';

const mounted = new Set<LoopMount>();

process.once('exit', () => {
  for (const mount of mounted) mount.unmount();
});

/** Empty when these file systems can be made and mounted here. */
export function whyNoLoopMounts(names: readonly LoopFileSystem[] = ['btrfs', 'xfs']): string {
  if (process.getuid?.() !== 0) return 'mounting needs root';
  if (!existsSync('/dev/loop-control')) return 'this kernel has no loop devices (/dev/loop-control)';
  const known = readFileSync('/proc/filesystems', 'utf8');
  const missing = names.filter((name) => !new RegExp(`\\t${name}$`, 'm').test(known) && !canLoad(name));
  return missing.length === 0 ? '' : `this kernel has no ${missing.join(' and no ')}`;
}

function canLoad(module: string): boolean {
  return spawnSync('modprobe', [module], { stdio: 'ignore' }).status === 0;
}

export function ensureFileSystemTools(): void {
  const why = whyNoPackages('btrfs-progs', 'xfsprogs');
  if (why !== '') throw new Error(why);
}

export class LoopMount {
  readonly path: string;
  readonly #image: string;

  private constructor(path: string, image: string) {
    this.path = path;
    this.#image = image;
  }

  /** @param dir gets the image and the folder that the file system is mounted on */
  static make(
    fileSystem: LoopFileSystem,
    dir: string,
    sizeMib = 1024,
    mkfsArgs: readonly string[] = [],
  ): LoopMount {
    const [path, image] = [join(dir, fileSystem), join(dir, `${fileSystem}.img`)];
    writeFileSync(image, '');
    truncateSync(image, sizeMib << 20);
    const force = fileSystem === 'ext4' ? '-F' : '-f';
    execFileSync(`/sbin/mkfs.${fileSystem}`, ['-q', force, ...mkfsArgs, image], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    mkdirSync(path);
    execFileSync('mount', ['-o', 'loop', image, path]);
    const mount = new LoopMount(path, image);
    mounted.add(mount);
    return mount;
  }

  /** Nothing is left of it, whoever still has a file open. */
  unmount(): void {
    mounted.delete(this);
    if (spawnSync('umount', [this.path], { stdio: 'ignore' }).status !== 0)
      spawnSync('umount', ['--lazy', this.path]);
    rmSync(this.#image, { force: true });
  }
}
