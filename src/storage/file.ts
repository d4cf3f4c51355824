/**
 * Objects as files below one folder: key "a/b" is ROOT/a/b. Files 0600, folders 0700, for they hold guest
 * memory.
 *
 * An object appears by link(2) of a finished, synced temporary file in the same folder: link fails when the
 * name is taken, so that of two writers of one key exactly one succeeds and neither replaces the other's
 * object. The folder is synced after that, and so are the folders above that had to be made. An object is
 * replaced by rename(2) of such a file.
 *
 * What link, rename and unlink answer is not believed on its own: over NFS a request whose answer was lost is
 * sent again, and then a link that worked says EEXIST, a rename or unlink that worked says ENOENT. One's own
 * object is known by its inode, which is that of the temporary file.
 */

import { constants } from 'node:fs';
import {
  access,
  link,
  mkdir,
  open,
  readdir,
  rename,
  rm,
  stat,
  statfs,
  unlink,
  type FileHandle,
} from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';

import { CheckpointError, isCheckpointError, systemErrorCode } from '../errors.js';
import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from './backend.js';
import { foreignNamesIn } from './foreign-names.js';
import { throwIfInterrupted } from './interrupted.js';
import { assertKey, compareKeys, isKeySegment } from './keys.js';
import { inodeAt, isClearRefusal, type Inode } from './own-file.js';
import {
  alreadyExists,
  fromSystemError,
  notFound,
  outOfRange,
  roomFor,
  uncertain,
  unfinishedGone,
  withoutEffect,
} from './storage-errors.js';
import { newTempName, removeAll, removeLeftovers } from './temp-files.js';

const FILE_MODE = 0o600;
const FOLDER_MODE = 0o700;

/** A finished file that has no name of an object yet. */
interface TempFile {
  readonly path: string;
  readonly inode: Inode;
}

export class FileBackend implements StorageBackend {
  readonly properties: StorageProperties;
  readonly #root: string;
  /** Folders that this instance knows to exist and has cleared of leftovers. */
  readonly #ready = new Set<string>();
  /** New folders whose name may not survive a power cut yet, and the topmost new one above each. */
  readonly #unsynced = new Map<string, string>();
  /** Paths of what this instance is writing. */
  readonly #unfinished = new Set<string>();

  /** The folder need not exist: the first `save` makes it. */
  constructor(path: string) {
    this.#root = resolve(path);
    this.properties = { location: `file:${this.#root}`, durable: true };
  }

  async save(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `writing ${key}`);
    const folder = dirname(path);
    await this.#system('writing', key, () => this.#makeReady(folder));
    return this.#viaTemp(key, body, signal, async (temp) => {
      await beforeVisible?.();
      await this.#publish(temp, path, key, () => link(temp.path, path));
    });
  }

  async replace(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    const path = this.#pathOf(key);
    await this.stat(key, { signal });
    return this.#viaTemp(key, body, signal, async (temp) => {
      await beforeVisible?.();
      await this.#publish(temp, path, key, () => rename(temp.path, path));
    });
  }

  /** @param publish gives the finished, synced file its name */
  async #viaTemp(
    key: string,
    body: ObjectBody,
    signal: AbortSignal | undefined,
    publish: (temp: TempFile) => Promise<void>,
  ): Promise<number> {
    const path = join(dirname(this.#pathOf(key)), newTempName());
    this.#unfinished.add(path);
    try {
      const { sizeBytes, inode } = await this.#write(path, key, body, signal);
      throwIfInterrupted(signal, `writing ${key}`);
      await publish({ path, inode });
      return sizeBytes;
    } finally {
      // The object has a name of its own by now, or the attempt failed. A leftover is harmless.
      await rm(path, { force: true }).catch(() => undefined);
      this.#unfinished.delete(path);
    }
  }

  async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    { signal }: CallOptions = {},
  ): Promise<Uint8Array> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `reading ${key}`);
    return this.#system('reading', key, async () => {
      const file = await open(path, 'r');
      try {
        const offset = range?.offsetBytes ?? 0;
        const length = range?.lengthBytes ?? (await sizeOf(file, key, this.properties.location));
        // Not from the pool of small buffers: the caller owns the result, and others must not see it through
        // `buffer`.
        const bytes = roomFor(key, length);
        let done = 0;
        while (done < length) {
          const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
          if (bytesRead === 0) throw outOfRange(key, offset + length, offset + done);
          done += bytesRead;
        }
        return bytes;
      } finally {
        await file.close();
      }
    });
  }

  async stat(key: string, { signal }: CallOptions = {}): Promise<StoredObject> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `looking up ${key}`);
    return this.#system('reading', key, async () => {
      // Not stat(2): a lock that another host has removed would be there for up to a minute more, over NFS.
      const found = await inodeAt(path);
      if (found === undefined) throw notFound(key, this.properties.location);
      return { key, sizeBytes: found.sizeBytes };
    });
  }

  async list(prefix: string, { signal }: CallOptions = {}): Promise<readonly StoredObject[]> {
    throwIfInterrupted(signal, `listing ${prefix}`);
    const found: StoredObject[] = [];
    const start = prefix.slice(0, prefix.lastIndexOf('/') + 1);
    if (start !== '') assertKey(start.slice(0, -1));
    await this.#system('reading', prefix, () => this.#walk(start, prefix, found, signal));
    return found.sort(compareKeys);
  }

  async remove(key: string, { signal }: CallOptions = {}): Promise<void> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `removing ${key}`);
    // What was there before and is not there afterwards was removed by this call, whatever unlink says of it.
    await this.stat(key, { signal });
    try {
      await unlink(path);
    } catch (error) {
      const found = await this.#look('removing', key, error, () => inodeAt(path));
      // One that is still there is not missing, whatever unlink says.
      const isFalse = systemErrorCode(error) === 'ENOENT';
      const { location } = this.properties;
      if (found !== undefined && isFalse) throw withoutEffect('removing', key, location, error);
      if (found !== undefined) throw fromSystemError(error, 'removing', key, location);
    }
    await this.#look('removing', key, undefined, () => syncFolder(dirname(path)));
  }

  async confirm(key: string, { signal }: CallOptions = {}): Promise<StoredObject | undefined> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `looking up ${key}`);
    return this.#look('looking up', key, undefined, async () => {
      try {
        // Synced before it is looked at: what is seen then survives a power cut. A journal that could not be
        // written stays unwritable, and its error comes again.
        await syncFolder(dirname(path));
      } catch (error) {
        if (!isMissing(error)) throw error;
        return undefined;
      }
      const found = await inodeAt(path);
      return found === undefined ? undefined : { key, sizeBytes: found.sizeBytes };
    });
  }

  async removeUnfinished(prefix: string, { signal }: CallOptions = {}): Promise<number> {
    throwIfInterrupted(signal, `looking into ${prefix}`);
    if (prefix !== '') assertKey(prefix.slice(0, -1));
    const folder = join(this.#root, prefix);
    return this.#system('removing', prefix, () => removeAll(folder, this.#root, this.#unfinished));
  }

  async foreignNames(known: readonly string[], { signal }: CallOptions = {}): Promise<readonly string[]> {
    throwIfInterrupted(signal, `looking into ${this.#root}`);
    return this.#system('reading', '', () => foreignNamesIn(this.#root, known));
  }

  /** Blocks that root alone may use do not count. */
  async freeBytes({ signal }: CallOptions = {}): Promise<number> {
    throwIfInterrupted(signal, `looking into ${this.#root}`);
    const { bavail, bsize } = await this.#system('reading', '', () => statfs(this.#root));
    return bavail * bsize;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #pathOf(key: string): string {
    assertKey(key);
    return join(this.#root, key);
  }

  async #system<T>(step: string, key: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (systemErrorCode(error) === undefined || isCheckpointError(error)) throw error;
      throw fromSystemError(error, step, key, this.properties.location);
    }
  }

  /** All of the file is on stable storage then. */
  async #write(
    temp: string,
    key: string,
    body: ObjectBody,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly sizeBytes: number; readonly inode: Inode }> {
    const file = await this.#system('writing', key, () => open(temp, 'wx', FILE_MODE));
    try {
      let sizeBytes = 0;
      // What the producer of the chunks throws is not ours to translate, hence the narrow `#system`.
      for await (const chunk of body instanceof Uint8Array ? [body] : body) {
        throwIfInterrupted(signal, `writing ${key}`);
        await this.#system('writing', key, () => writeAll(file, chunk));
        sizeBytes += chunk.length;
      }
      return await this.#system('writing', key, async () => {
        await file.sync();
        const { dev, ino } = await file.stat({ bigint: true });
        return { sizeBytes, inode: { dev, ino } };
      });
    } finally {
      await this.#system('writing', key, () => file.close());
    }
  }

  /** @param give gives the finished file the name of the object: link or rename */
  async #publish(temp: TempFile, path: string, key: string, give: () => Promise<void>): Promise<void> {
    try {
      await give();
    } catch (error) {
      const wasRemoved = isMissing(error) && (await this.#isGone(temp, key, error));
      if (await this.#hasTaken(temp, path, key, error)) return this.#settle(path, key);
      throw wasRemoved ? unfinishedGone(key, this.properties.location, error) : this.#refusal(error, key);
    }
    return this.#settle(path, key);
  }

  /**
   * The name is there now. When it cannot be said whether it will be after a power cut, it is not taken back
   * either: that could as well be lost.
   */
  #settle(path: string, key: string): Promise<void> {
    return this.#look('writing', key, undefined, () => syncFolder(dirname(path)));
  }

  async #isGone(temp: TempFile, key: string, cause: unknown): Promise<boolean> {
    return (await this.#look('writing', key, cause, () => inodeAt(temp.path))) === undefined;
  }

  /** Whether the file has the name although the call that was to give it failed. @throws STORAGE_UNCERTAIN */
  #hasTaken(temp: TempFile, path: string, key: string, cause: unknown): Promise<boolean> {
    const isOurs = (found: Inode | undefined): boolean =>
      found?.ino === temp.inode.ino && found.dev === temp.inode.dev;
    return this.#look('writing', key, cause, async () => {
      if (isOurs(await inodeAt(path))) return true;
      if (isClearRefusal(cause)) return false;
      // The request may still be under way. Without the file it comes to nothing.
      await rm(temp.path, { force: true });
      return isOurs(await inodeAt(path));
    });
  }

  /** @throws STORAGE_UNCERTAIN when `work` fails, with `cause` where there is one */
  async #look<T>(step: string, key: string, cause: unknown, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw uncertain(step, key, this.properties.location, cause ?? error);
    }
  }

  #refusal(error: unknown, key: string): CheckpointError {
    const { location } = this.properties;
    const errno = systemErrorCode(error) ?? '';
    if (errno === 'EEXIST') return alreadyExists(key, location);
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'EMLINK'].includes(errno))
      return fromSystemError(error, 'writing', key, location);
    return new CheckpointError('STORAGE_IO', `writing ${key} in ${location}: link(2) gave ${errno}`, {
      cause: error,
      hint: 'a repository needs a file system with hard links',
    });
  }

  async #makeReady(folder: string): Promise<void> {
    if (this.#ready.has(folder)) return;
    const first = (await makeFolders(folder)) ?? this.#unsynced.get(folder);
    if (first !== undefined) {
      this.#unsynced.set(folder, first);
      // A new folder survives when the one above it is synced: from the topmost new one down.
      for (let made = folder; made.length >= first.length; made = dirname(made))
        await syncFolder(dirname(made));
      this.#unsynced.delete(folder);
    }
    await removeLeftovers(folder, this.#root);
    this.#ready.add(folder);
  }

  async #walk(
    start: string,
    prefix: string,
    found: StoredObject[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    let entries;
    try {
      entries = await readdir(join(this.#root, start), { withFileTypes: true });
    } catch (error) {
      if (isMissing(error)) return;
      throw error;
    }
    for (const entry of entries) {
      throwIfInterrupted(signal, `listing ${prefix}`);
      if (!isKeySegment(entry.name)) continue;
      const key = `${start}${entry.name}`;
      if (entry.isDirectory() && (`${key}/`.startsWith(prefix) || prefix.startsWith(`${key}/`))) {
        await this.#walk(`${key}/`, prefix, found, signal);
      } else if (entry.isFile() && key.startsWith(prefix)) {
        const sizeBytes = await sizeIfPresent(join(this.#root, key));
        if (sizeBytes !== undefined) found.push({ key, sizeBytes });
      }
    }
  }
}

function isMissing(error: unknown): boolean {
  const errno = systemErrorCode(error);
  return errno === 'ENOENT' || errno === 'ENOTDIR';
}

async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.length;) {
    done += (await file.write(chunk, done, chunk.length - done)).bytesWritten;
  }
}

async function sizeOf(file: FileHandle, key: string, location: string): Promise<number> {
  const found = await file.stat();
  if (!found.isFile()) throw notFound(key, location);
  return found.size;
}

/** Undefined when the file was removed while the folder was being read. */
async function sizeIfPresent(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } catch (error) {
    // Some network and FUSE file systems sync names by themselves and know no fsync of a folder.
    if (systemErrorCode(error) !== 'EINVAL') throw error;
  } finally {
    await folder.close();
  }
}

/** Makes `folder` and what is missing above it. @returns the topmost that was made */
async function makeFolders(folder: string): Promise<string | undefined> {
  try {
    return await mkdir(folder, { recursive: true, mode: FOLDER_MODE });
  } catch (error) {
    // Node says ENOENT when the file system is read-only; the nearest folder that exists knows the reason.
    if (systemErrorCode(error) === 'ENOENT') await access(await nearestFolder(folder), constants.W_OK);
    throw error;
  }
}

async function nearestFolder(path: string): Promise<string> {
  try {
    await stat(path);
    return path;
  } catch {
    return nearestFolder(dirname(path));
  }
}
