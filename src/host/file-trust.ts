/**
 * Who could have exchanged a file: its owner, whoever may write to it, and the same for each folder on the
 * way to it, up to the root. Links are followed, and each folder on the way of their targets counts too.
 *
 * A folder with the sticky bit (`/tmp`) lets nobody exchange what others own, so it counts by the owner of
 * the entry (inode(7)). An access control list shows in the group's bits as its mask (acl(5)), so it needs no
 * look of its own. The group of root counts as root.
 */

import type { Stats } from 'node:fs';
import { lstat, readdir, readlink } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';

import { systemErrorCode } from '../errors.js';

export interface Replaceable {
  /** The place that somebody else could have changed: the file, a link, or a folder on the way. */
  readonly path: string;
  /** Who could, as the end of a sentence that begins with the path. */
  readonly why: string;
}

const STICKY = 0o1000;
const GROUP_WRITES = 0o020;
const OTHERS_WRITE = 0o002;
const MAX_LINKS = 40;
/** Folders of libraries and firmware have sub-folders (`glibc-hwcaps/x86-64-v3`, `keymaps`), and no more. */
const MAX_DEPTH = 3;

export class FileTrust {
  readonly #trusted: ReadonlySet<number>;
  readonly #stats = new Map<string, Promise<Stats>>();

  /** @param trusted ids of the users who may change everything; root is among them without being named */
  constructor(trusted: Iterable<number>) {
    this.#trusted = new Set([0, ...trusted]);
  }

  /**
   * @param path absolute
   * @returns the first place that somebody else could change, undefined when there is none, or when nothing
   *   is at `path`
   */
  async replaceable(path: string): Promise<Replaceable | undefined> {
    try {
      return await this.#walk(path);
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return undefined;
      throw error;
    }
  }

  /** Does what `replaceable` does for a folder and everything in it that is loaded by name. */
  async replaceableIn(folder: string, depth = MAX_DEPTH): Promise<Replaceable | undefined> {
    const found = await this.replaceable(folder);
    if (found !== undefined || depth === 0) return found;
    for (const entry of await readdir(folder, { withFileTypes: true }).catch(() => [])) {
      const path = join(folder, entry.name);
      const inside = entry.isDirectory()
        ? await this.replaceableIn(path, depth - 1)
        : await this.replaceable(path);
      if (inside !== undefined) return inside;
    }
    return undefined;
  }

  async #walk(path: string): Promise<Replaceable | undefined> {
    let rest = partsOf(path);
    let at = '/';
    let folder = await this.#lstat(at);
    let links = 0;
    const root = this.#changeable(at, folder);
    if (root !== undefined) return root;
    while (rest.length > 0) {
      const [name, ...after] = rest as [string, ...string[]];
      rest = after;
      if (name === '..') {
        at = dirname(at);
        folder = await this.#lstat(at);
        continue;
      }
      const next = join(at, name);
      const found = await this.#lstat(next);
      if (isOpenToOthers(folder) && !this.#trusted.has(found.uid))
        return { path: next, why: `belongs to user ${found.uid}, in a folder that others may write to` };
      if (found.isSymbolicLink()) {
        if (++links > MAX_LINKS) return { path: next, why: 'is one of too many links' };
        const target = await readlink(next);
        rest = [...partsOf(target), ...rest];
        if (!isAbsolute(target)) continue;
        at = '/';
        folder = await this.#lstat(at);
        continue;
      }
      const changeable = this.#changeable(next, found);
      if (changeable !== undefined) return changeable;
      at = next;
      folder = found;
    }
    return undefined;
  }

  #changeable(path: string, stats: Stats): Replaceable | undefined {
    const { uid, gid, mode } = stats;
    if (!this.#trusted.has(uid)) return { path, why: `belongs to user ${uid}` };
    if (stats.isDirectory() && (mode & STICKY) !== 0) return undefined;
    if ((mode & OTHERS_WRITE) !== 0) return { path, why: 'can be written to by everybody' };
    if ((mode & GROUP_WRITES) !== 0 && gid !== 0) return { path, why: `can be written to by group ${gid}` };
    return undefined;
  }

  #lstat(path: string): Promise<Stats> {
    const known = this.#stats.get(path);
    if (known !== undefined) return known;
    const asked = lstat(path);
    this.#stats.set(path, asked);
    return asked;
  }
}

/** A sticky folder is passed by `#changeable`; what is in it goes by its own owner. */
function isOpenToOthers({ mode, gid }: Stats): boolean {
  return (mode & OTHERS_WRITE) !== 0 || ((mode & GROUP_WRITES) !== 0 && gid !== 0);
}

function partsOf(path: string): string[] {
  return path.split('/').filter((part) => part !== '' && part !== '.');
}
