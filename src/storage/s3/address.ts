/**
 * The address of a repository in an object store:
 *
 *     s3://BUCKET[/PREFIX][?OPTION=VALUE&...]
 */

import { CheckpointError } from '../../errors.js';
import { isKeySegment } from '../keys.js';

export interface S3Address {
  readonly bucket: string;
  /** Without slashes around it; may be empty. */
  readonly prefix: string;
  /** As they were given; see `OPTIONS`. */
  readonly options: Readonly<Partial<Record<S3Option, string>>>;
  /** Without the options. */
  readonly location: string;
}

/** Each with what it takes, for messages. */
const OPTIONS = {
  endpoint: 'http(s)://HOST[:PORT]',
  region: 'a name',
  profile: 'a name',
  'path-style': 'yes or no',
  ca: 'a file in PEM',
  'limit-upload': 'KiB a second',
  'limit-download': 'KiB a second',
  'single-writer': 'yes or no',
  'give-up': 'seconds',
} as const;

export type S3Option = keyof typeof OPTIONS;

const BUCKET = /^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$/;

/** @throws STORAGE_ADDRESS */
export function parseS3Address(address: string): S3Address {
  const found = /^s3:\/\/([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/.exec(address);
  if (found === null) throw wrong(address, 'is not s3://BUCKET/PREFIX');
  const bucket = found[1]!;
  const prefix = (found[2] ?? '').replace(/\/+$/, '');
  if (!BUCKET.test(bucket)) throw wrong(address, `"${bucket}" is not the name of a bucket`);
  if (prefix !== '' && !prefix.split('/').every(isKeySegment))
    throw wrong(address, 'a prefix has names of A-Z a-z 0-9 . _ - with slashes between them');
  const options: Partial<Record<S3Option, string>> = {};
  for (const [name, value] of new URLSearchParams(found[3] ?? '')) {
    if (!Object.hasOwn(OPTIONS, name)) throw wrong(address, `there is no option "${name}"`);
    options[name as S3Option] = value;
  }
  return { bucket, prefix, options, location: `s3://${bucket}${prefix === '' ? '' : `/${prefix}`}` };
}

/** @returns undefined when the option was not given. @throws STORAGE_ADDRESS */
export function yesNoOption({ options, location }: S3Address, name: S3Option): boolean | undefined {
  const value = options[name];
  if (value === undefined) return undefined;
  if (/^(yes|true|1|)$/i.test(value)) return true;
  if (/^(no|false|0)$/i.test(value)) return false;
  throw wrong(location, `${name} takes ${OPTIONS[name]}`);
}

/** @returns undefined when the option was not given. @throws STORAGE_ADDRESS */
export function countOption({ options, location }: S3Address, name: S3Option): number | undefined {
  const value = options[name];
  if (value === undefined) return undefined;
  if (/^[1-9]\d{0,8}$/.test(value)) return Number(value);
  throw wrong(location, `${name} takes ${OPTIONS[name]}`);
}

function wrong(address: string, what: string): CheckpointError {
  return new CheckpointError('STORAGE_ADDRESS', `"${address}": ${what}`, {
    hint: `s3://BUCKET/PREFIX?OPTION=VALUE with these options: ${Object.entries(OPTIONS)
      .map(([name, takes]) => `${name} (${takes})`)
      .join(', ')}`,
  });
}
