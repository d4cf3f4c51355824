/** A repository in an object store, by its address. Loaded only for such an address. */

import type { StorageBackend } from '../backend.js';
import { parseS3Address, yesNoOption, type S3Address } from './address.js';
import type { Environment } from './credentials.js';
import { S3Backend } from './s3-backend.js';
import { S3Client, type S3ClientOptions } from './s3-client.js';
import { findSettings, type S3Settings } from './settings.js';

export interface OpenedS3 {
  readonly address: S3Address;
  readonly settings: S3Settings;
  readonly client: S3Client;
  readonly backend: StorageBackend;
  readonly isSingleWriter: boolean;
}

/** Asks the store nothing. @throws STORAGE_ADDRESS, STORAGE_IO for a file that cannot be read */
export async function openS3(
  text: string,
  env: Environment = process.env,
  options: S3ClientOptions = {},
): Promise<OpenedS3> {
  const address = parseS3Address(text);
  const isSingleWriter = yesNoOption(address, 'single-writer') ?? false;
  const settings = await findSettings(address, env);
  const client = new S3Client(settings, options);
  const backend = new S3Backend(client, { location: text, prefix: address.prefix, isSingleWriter });
  return { address, settings, client, backend, isSingleWriter };
}
