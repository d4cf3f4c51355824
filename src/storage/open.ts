/** Finds the storage backend for the address of a repository. */

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { StorageBackend } from './backend.js';
import { FileBackend } from './file.js';
import { KEYS_KEY } from './keys.js';
import type { Secret } from './sealing/secret.js';
import { isSecretNamed } from './sealing/secret-names.js';

/** Asks somebody who is there. */
export type AskSecret = () => Promise<Secret>;

/**
 * Takes `PATH`, `file:PATH` or `s3://BUCKET/PREFIX`. A path that looks like an address can be written ./a:b or
 * file:a:b. What speaks to an object store is loaded for such an address only.
 * An encrypted repository is opened by what the environment names (`sealing/secret.ts`), else by what `ask` gives.
 * @throws STORAGE_ADDRESS, STORAGE_IO when a file of keys or certificates cannot be read, KEY_NEEDED, KEY_WRONG,
 *   KEY_UNEXPECTED for a repository that is not encrypted although a key was given, and what the backend throws
 */
export async function openStorage(address: string, ask?: AskSecret): Promise<StorageBackend> {
  const backend = await openRaw(address);
  try {
    return await unlocked(backend, ask);
  } catch (error) {
    await backend.close();
    throw error;
  }
}

/** The objects as they are stored, encrypted or not. @throws STORAGE_ADDRESS, STORAGE_IO */
export async function openRaw(address: string): Promise<StorageBackend> {
  if (!isObjectStore(address)) return openBackend(address);
  return (await import('./s3/open-s3.js')).openS3(address).then(({ backend }) => backend);
}

async function unlocked(backend: StorageBackend, ask: AskSecret | undefined): Promise<StorageBackend> {
  const isSealedHere = await isSealed(backend);
  if (!isSealedHere && !isSecretNamed(process.env)) return backend;
  const { location } = backend.properties;
  if (!isSealedHere) {
    // Whoever can write there may have put a repository in the clear in the place of an encrypted one.
    if (!(await has(backend, 'config'))) return backend;
    throw new CheckpointError('KEY_UNEXPECTED', `${location} is not encrypted, and a key was given`, {
      hint: 'see that it is the right repository; to use one that is in the clear, give no key',
    });
  }
  const [{ needed, secretFrom }, { unlock }] = await Promise.all([
    import('./sealing/secret.js'),
    import('./sealing/open-sealed.js'),
  ]);
  const secret = (await secretFrom(process.env)) ?? (await ask?.());
  if (secret === undefined) throw needed(`${location} is encrypted`);
  return unlock(backend, secret);
}

export async function isSealed(backend: StorageBackend): Promise<boolean> {
  return has(backend, KEYS_KEY);
}

async function has(backend: StorageBackend, key: string): Promise<boolean> {
  try {
    await backend.stat(key);
    return true;
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) return false;
    throw error;
  }
}

export function isObjectStore(address: string): boolean {
  return address.startsWith('s3:');
}

/**
 * Takes `PATH` or `file:PATH`. See `openStorage` for all others.
 * @throws STORAGE_ADDRESS
 */
export function openBackend(address: string): StorageBackend {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(address)?.[1];
  const path = scheme === 'file' ? address.slice('file:'.length) : address;
  if (scheme !== undefined && scheme !== 'file') {
    throw new CheckpointError('STORAGE_ADDRESS', `"${address}": no storage backend for ${scheme}:`, {
      hint: 'a repository is a folder: PATH or file:PATH (a relative path with a colon: ./PATH); or s3://BUCKET/PREFIX',
    });
  }
  if (path === '') {
    throw new CheckpointError('STORAGE_ADDRESS', 'the address of the repository is empty', {
      hint: 'name a folder: PATH or file:PATH',
    });
  }
  // file:///srv/x as other programs write it; file://host/x is nothing we could reach.
  if (scheme === 'file' && path.startsWith('//')) {
    if (path.startsWith('///')) return new FileBackend(path.slice(2));
    throw new CheckpointError('STORAGE_ADDRESS', `"${address}" names another host`, {
      hint: 'mount it and give the path',
    });
  }
  return new FileBackend(path);
}
