/**
 * How a store is spoken to: the options of the address first, then the environment and the shared files that
 * AWS tools read, then what Amazon's own store needs.
 */

import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

import { CheckpointError } from '../../errors.js';
import { countOption, yesNoOption, type S3Address } from './address.js';
import { configSection, CredentialChain, type Environment } from './credentials.js';
import { readIniFile } from './ini-file.js';

export interface S3Settings {
  readonly endpoint: URL;
  readonly region: string;
  readonly bucket: string;
  /** The bucket in the path, instead of in the host name. */
  readonly isPathStyle: boolean;
  /** Certificates beside those of the system, in PEM. */
  readonly ca?: Buffer | undefined;
  readonly credentials: Pick<CredentialChain, 'get' | 'forget'>;
  /** Bytes a second. */
  readonly uploadLimit?: number | undefined;
  readonly downloadLimit?: number | undefined;
  /** For how long a call is tried again. */
  readonly giveUpMs: number;
}

const DEFAULT_REGION = 'us-east-1';
/** Longer than a gateway takes to start again, shorter than an operator waits. */
const GIVE_UP_SECONDS = 120;

/** @throws STORAGE_ADDRESS, STORAGE_IO for a file that cannot be read */
export async function findSettings(address: S3Address, env: Environment = process.env): Promise<S3Settings> {
  const { options, bucket } = address;
  const home = env.HOME ?? homedir();
  const [credentials, config] = await Promise.all([
    readIniFile(env.AWS_SHARED_CREDENTIALS_FILE ?? join(home, '.aws/credentials')),
    readIniFile(env.AWS_CONFIG_FILE ?? join(home, '.aws/config')),
  ]);
  const profile = options.profile ?? env.AWS_PROFILE ?? 'default';
  const shared = configSection(config, profile);
  const region =
    options.region ?? env.AWS_REGION ?? env.AWS_DEFAULT_REGION ?? shared?.get('region') ?? DEFAULT_REGION;
  const endpoint =
    options.endpoint ?? env.AWS_ENDPOINT_URL_S3 ?? env.AWS_ENDPOINT_URL ?? shared?.get('endpoint_url');
  const ca = options.ca ?? env.AWS_CA_BUNDLE ?? shared?.get('ca_bundle');
  // Host names of buckets take a DNS and certificates that few but Amazon have; a name with dots fits no wildcard.
  const isPathStyle =
    yesNoOption(address, 'path-style') ??
    (shared?.get('s3.addressing_style') === 'path' || endpoint !== undefined || bucket.includes('.'));
  return {
    ...{ region, bucket, isPathStyle },
    endpoint: endpointUrl(address, endpoint ?? `https://s3.${region}.amazonaws.com`),
    ca: ca === undefined ? undefined : await readCertificates(ca),
    credentials: new CredentialChain({
      ...{ env, profile, files: { credentials, config } },
      isProfileNamed: options.profile !== undefined,
    }),
    uploadLimit: kibPerSecond(countOption(address, 'limit-upload')),
    downloadLimit: kibPerSecond(countOption(address, 'limit-download')),
    giveUpMs: 1000 * (countOption(address, 'give-up') ?? GIVE_UP_SECONDS),
  };
}

function endpointUrl({ location }: S3Address, text: string): URL {
  const isUrl = URL.canParse(text) && /^https?:$/.test(new URL(text).protocol);
  if (isUrl && /^\/?$/.test(new URL(text).pathname)) return new URL(text);
  throw new CheckpointError('STORAGE_ADDRESS', `${location}: the endpoint "${text}" is not http(s)://HOST`, {
    hint: 'see the option endpoint of the address, AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL',
  });
}

async function readCertificates(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new CheckpointError('STORAGE_IO', `the certificates in ${path} cannot be read`, { cause });
  }
}

function kibPerSecond(count: number | undefined): number | undefined {
  return count === undefined ? undefined : count * 1024;
}
