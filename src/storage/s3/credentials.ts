/**
 * Where the keys come from, in the order of AWS tools; the first source that has any counts:
 *
 *     AWS_ACCESS_KEY_ID ...            unless a profile was named
 *     the profile in ~/.aws/credentials, then in ~/.aws/config, there also `credential_process`
 *     AWS_CONTAINER_CREDENTIALS_*      what a container is given
 *     instance metadata                what a machine of a cloud is given (IMDSv2)
 *
 * Keys that expire are fetched anew a while before.
 */

import { readFile } from 'node:fs/promises';

import { CheckpointError, describeError } from '../../errors.js';
import { runProgram } from '../../host/run-program.js';
import type { IniSections } from './ini-file.js';
import type { Credentials } from './signature.js';

export type Environment = Readonly<Record<string, string | undefined>>;

export interface CredentialSources {
  readonly env: Environment;
  readonly profile: string;
  /** A profile that was asked for comes before keys in the environment. */
  readonly isProfileNamed: boolean;
  /** `~/.aws/credentials` and `~/.aws/config`. */
  readonly files: { readonly credentials: IniSections; readonly config: IniSections };
}

const PROCESS_LIMIT_MS = 60_000;
/** A host that is in no cloud has nobody there, and would wait. */
const METADATA_LIMIT_MS = 1500;
const CONTAINER_HOST = 'http://169.254.170.2';
const RENEW_BEFORE_MS = 5 * 60_000;

export class CredentialChain {
  readonly #sources: CredentialSources;
  #last: Promise<Credentials> | undefined;

  constructor(sources: CredentialSources) {
    this.#sources = sources;
  }

  /** @throws STORAGE_IO when there are none */
  async get(): Promise<Credentials> {
    this.#last ??= findCredentials(this.#sources);
    try {
      const found = await this.#last;
      if (found.expiresMs === undefined || found.expiresMs - RENEW_BEFORE_MS > Date.now()) return found;
      this.#last = findCredentials(this.#sources);
      return await this.#last;
    } catch (error) {
      this.#last = undefined;
      throw error;
    }
  }

  /** The store has refused them as expired: they are looked for anew. */
  forget(): void {
    this.#last = undefined;
  }
}

async function findCredentials(sources: CredentialSources): Promise<Credentials> {
  const { env, profile, isProfileNamed } = sources;
  const found =
    (isProfileNamed ? undefined : ofEnvironment(env)) ??
    (await ofProfile(sources)) ??
    (isProfileNamed ? undefined : ((await ofContainer(env)) ?? (await ofInstance(env))));
  if (found !== undefined) return found;
  throw new CheckpointError('STORAGE_IO', `there are no keys for the object store (profile ${profile})`, {
    hint: 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or make a profile in ~/.aws/credentials',
  });
}

function ofEnvironment(env: Environment): Credentials | undefined {
  const { AWS_ACCESS_KEY_ID: accessKeyId = '', AWS_SECRET_ACCESS_KEY: secretAccessKey = '' } = env;
  if (accessKeyId === '' || secretAccessKey === '') return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: orNothing(env.AWS_SESSION_TOKEN) };
}

async function ofProfile({ profile, files }: CredentialSources): Promise<Credentials | undefined> {
  for (const settings of [files.credentials.get(profile), configSection(files.config, profile)]) {
    const accessKeyId = settings?.get('aws_access_key_id') ?? '';
    const secretAccessKey = settings?.get('aws_secret_access_key') ?? '';
    if (accessKeyId !== '' && secretAccessKey !== '')
      return { accessKeyId, secretAccessKey, sessionToken: orNothing(settings?.get('aws_session_token')) };
    const command = settings?.get('credential_process') ?? '';
    if (command !== '') return ofProcess(profile, command);
  }
  return undefined;
}

/** In `config`, the sections of all profiles but the default one have a word before the name. */
export function configSection(config: IniSections, profile: string): ReadonlyMap<string, string> | undefined {
  return config.get(`profile ${profile}`) ?? (profile === 'default' ? config.get(profile) : undefined);
}

async function ofProcess(profile: string, command: string): Promise<Credentials> {
  try {
    const result = await runProgram('/bin/sh', ['-c', command], { limitMs: PROCESS_LIMIT_MS });
    if (result.kind !== 'done') throw new Error(result.kind);
    return fromJson(JSON.parse(result.stdout), 'SessionToken');
  } catch (cause) {
    // Neither its output nor the command, which may name a key.
    throw new CheckpointError('STORAGE_IO', `credential_process of profile ${profile} gave no keys`, {
      cause,
    });
  }
}

async function ofContainer(env: Environment): Promise<Credentials | undefined> {
  const relative = env.AWS_CONTAINER_CREDENTIALS_RELATIVE_URI ?? '';
  const url =
    relative === '' ? (env.AWS_CONTAINER_CREDENTIALS_FULL_URI ?? '') : `${CONTAINER_HOST}${relative}`;
  if (url === '') return undefined;
  const file = env.AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE ?? '';
  const token =
    file === ''
      ? env.AWS_CONTAINER_AUTHORIZATION_TOKEN
      : (await readFile(file, 'utf8').catch(() => '')).trim();
  try {
    return fromJson(
      JSON.parse(await ask(url, 'GET', token === undefined ? {} : { authorization: token })),
      'Token',
    );
  } catch (cause) {
    throw new CheckpointError('STORAGE_IO', `no keys from ${url}: ${describeError(cause)}`, { cause });
  }
}

async function ofInstance(env: Environment): Promise<Credentials | undefined> {
  if (/^true$/i.test(env.AWS_EC2_METADATA_DISABLED ?? '')) return undefined;
  const base = (env.AWS_EC2_METADATA_SERVICE_ENDPOINT ?? 'http://169.254.169.254').replace(/\/$/, '');
  try {
    const token = await ask(`${base}/latest/api/token`, 'PUT', {
      'x-aws-ec2-metadata-token-ttl-seconds': '21600',
    });
    const headers = { 'x-aws-ec2-metadata-token': token };
    const roles = `${base}/latest/meta-data/iam/security-credentials/`;
    const role = (await ask(roles, 'GET', headers)).split('\n')[0]!.trim();
    return fromJson(JSON.parse(await ask(`${roles}${role}`, 'GET', headers)), 'Token');
  } catch {
    // Not in a cloud, or without a role.
    return undefined;
  }
}

async function ask(url: string, method: string, headers: Record<string, string>): Promise<string> {
  const answer = await fetch(url, { method, headers, signal: AbortSignal.timeout(METADATA_LIMIT_MS) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.text();
}

function fromJson(value: unknown, tokenName: string): Credentials {
  const json = value as Readonly<Record<string, unknown>>;
  const text = (name: string): string | undefined => {
    const found = json[name];
    return typeof found === 'string' && found !== '' ? found : undefined;
  };
  const [accessKeyId, secretAccessKey] = [text('AccessKeyId'), text('SecretAccessKey')];
  if (accessKeyId === undefined || secretAccessKey === undefined) throw new Error('no keys in the answer');
  const expires = Date.parse(text('Expiration') ?? '');
  return {
    ...{ accessKeyId, secretAccessKey, sessionToken: text(tokenName) },
    expiresMs: Number.isNaN(expires) ? undefined : expires,
  };
}

function orNothing(text: string | undefined): string | undefined {
  return text === '' ? undefined : text;
}
