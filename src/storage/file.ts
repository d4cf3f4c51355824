/**
 * Objects as files below one folder: key "a/b" is ROOT/a/b. Files 0600, folders 0700, for they hold guest
 * memory.
 *
 * An object appears by link(2) of a finished, synced temporary file in the same folder: link fails when the
 * name is taken, so that of two writers of one key exactly one succeeds and neither replaces the other's
 * object. The folder is synced after that, and so are the folders above that had to be made. An object is
 * replaced by rename(2) of such a file.
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
  unlink,
  type FileHandle,
} from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';

import { CheckpointError, isCheckpointError, systemErrorCode } from '../errors.js';
import type { CallOptions, ObjectBody, StorageBackend, StorageProperties, StoredObject } from './backend.js';
import { throwIfInterrupted } from './interrupted.js';
import { assertKey, compareKeys, isKeySegment } from './keys.js';
import { alreadyExists, fromSystemError, notFound, outOfRange } from './storage-errors.js';
import { newTempName, removeLeftovers } from './temp-files.js';

const FILE_MODE = 0o600;
const FOLDER_MODE = 0o700;

export class FileBackend implements StorageBackend {
  readonly properties: StorageProperties;
  readonly #root: string;
  /** Folders that this instance knows to exist and has cleared of leftovers. */
  readonly #ready = new Set<string>();

  /** The folder need not exist: the first `save` makes it. */
  constructor(path: string) {
    this.#root = resolve(path);
    this.properties = { location: `file:${this.#root}`, durable: true };
  }

  async save(key: string, body: ObjectBody, { signal }: CallOptions = {}): Promise<number> {
    const path = this.#pathOf(key);
    throwIfInterrupted(signal, `writing ${key}`);
    const folder = dirname(path);
    await this.#system('writing', key, () => this.#makeReady(folder));
    return this.#viaTemp(key, body, signal, (temp) => this.#publish(temp, path, key));
  }

  async replace(key: string, body: ObjectBody, { signal }: CallOptions = {}): Promise<number> {
    const path = this.#pathOf(key);
    await this.stat(key, { signal });
    return this.#viaTemp(key, body, signal, (temp) =>
      this.#system('writing', key, async () => {
        await rename(temp, path);
        await syncFolder(dirname(path));
      }),
    );
  }

  /** @param publish gives the finished, synced file its name */
  async #viaTemp(
    key: string,
    body: ObjectBody,
    signal: AbortSignal | undefined,
    publish: (temp: string) => Promise<void>,
  ): Promise<number> {
    const temp = join(dirname(this.#pathOf(key)), newTempName());
    try {
      const sizeBytes = await this.#write(temp, key, body, signal);
      throwIfInterrupted(signal, `writing ${key}`);
      await publish(temp);
      return sizeBytes;
    } finally {
      // The object has a name of its own by now, or the attempt failed. A leftover is harmless.
      await rm(temp, { force: true }).catch(() => undefined);
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
        const bytes = new Uint8Array(length);
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
      const found = await stat(path);
      if (!found.isFile()) throw notFound(key, this.properties.location);
      return { key, sizeBytes: found.size };
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
    await this.#system('removing', key, async () => {
      await unlink(path);
      await syncFolder(dirname(path));
    });
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

  /** @returns bytes written, all of them on stable storage */
  async #write(
    temp: string,
    key: string,
    body: ObjectBody,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    const file = await this.#system('writing', key, () => open(temp, 'wx', FILE_MODE));
    try {
      let sizeBytes = 0;
      // What the producer of the chunks throws is not ours to translate, hence the narrow `#system`.
      for await (const chunk of body instanceof Uint8Array ? [body] : body) {
        throwIfInterrupted(signal, `writing ${key}`);
        await this.#system('writing', key, () => writeAll(file, chunk));
        sizeBytes += chunk.length;
      }
      await this.#system('writing', key, () => file.sync());
      return sizeBytes;
    } finally {
      await file.close();
    }
  }

  async #publish(temp: string, path: string, key: string): Promise<void> {
    try {
      await link(temp, path);
    } catch (error) {
      const errno = systemErrorCode(error);
      if (errno === 'EEXIST') throw alreadyExists(key, this.properties.location);
      if (errno === 'EPERM' || errno === 'ENOTSUP' || errno === 'EOPNOTSUPP' || errno === 'EMLINK') {
        throw new CheckpointError(
          'STORAGE_IO',
          `writing ${key} in ${this.properties.location}: link(2) gave ${errno}`,
          {
            cause: error,
            hint: 'a repository needs a file system with hard links',
          },
        );
      }
      throw fromSystemError(error, 'writing', key, this.properties.location);
    }
    try {
      await syncFolder(dirname(path));
    } catch (error) {
      // Not known to survive a power cut: take the name back rather than leave an object whose save failed.
      await unlink(path).catch(() => undefined);
      throw fromSystemError(error, 'writing', key, this.properties.location);
    }
  }

  async #makeReady(folder: string): Promise<void> {
    if (this.#ready.has(folder)) return;
    const first = await makeFolders(folder);
    if (first !== undefined) {
      // A new folder survives when the one above it is synced: from the topmost new one down.
      for (let made = folder; made.length >= first.length; made = dirname(made))
        await syncFolder(dirname(made));
    }
    await removeLeftovers(folder);
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
      const errno = systemErrorCode(error);
      if (errno === 'ENOENT' || errno === 'ENOTDIR') return;
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
