/** Finds the storage backend for the address of a repository. */

import { CheckpointError } from '../errors.js';
import type { StorageBackend } from './backend.js';
import { FileBackend } from './file.js';

/**
 * Takes `PATH`, `file:PATH` or `s3://BUCKET/PREFIX`. A path that looks like an address can be written ./a:b or
 * file:a:b. What speaks to an object store is loaded for such an address only.
 * @throws STORAGE_ADDRESS, STORAGE_IO when a file of keys or certificates cannot be read
 */
export async function openStorage(address: string): Promise<StorageBackend> {
  if (!isObjectStore(address)) return openBackend(address);
  return (await import('./s3/open-s3.js')).openS3(address).then(({ backend }) => backend);
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
