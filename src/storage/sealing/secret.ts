/**
 * What opens an encrypted repository: a passphrase, or a file of random bytes. Where they come from, in this order:
 *
 *     CAIRN_KEY_FILE             a file of 32 random bytes or more
 *     CAIRN_PASSPHRASE_COMMAND   a command that prints a passphrase
 *     CAIRN_PASSPHRASE_FILE      a file with one, such as a credential of systemd
 *     CAIRN_PASSPHRASE           one
 *
 * Of a passphrase the first line counts.
 */

import { readFile } from 'node:fs/promises';

import { CheckpointError, systemErrorCode } from '../../errors.js';
import { runProgram } from '../../host/run-program.js';
import {
  namedSecret,
  SECRET_VARIABLES,
  type SecretEnvironment,
  type SecretVariable,
} from './secret-names.js';

export interface Secret {
  readonly kind: 'passphrase' | 'key-file';
  readonly bytes: Buffer;
}

const COMMAND_LIMIT_MS = 60_000;
/** A key file is random; fewer bytes could be guessed. */
const LEAST_KEY_BYTES = 32;

/** @returns undefined when none of the variables is set. @throws KEY_NEEDED when what it names gives none */
export async function secretFrom(env: SecretEnvironment): Promise<Secret | undefined> {
  const name = namedSecret(env);
  return name === undefined ? undefined : secretOf(name, env[name]!);
}

/** @throws KEY_NEEDED */
export async function secretOf(name: SecretVariable, value: string): Promise<Secret> {
  switch (name) {
    case 'CAIRN_KEY_FILE':
      return keyOf(await contentOf(value), value);
    case 'CAIRN_PASSPHRASE_COMMAND': {
      const result = await runProgram('/bin/sh', ['-c', value], { limitMs: COMMAND_LIMIT_MS });
      if (result.kind === 'done') return passphrase(result.stdout);
      throw needed(`the command that gives the passphrase did not (${result.kind})`);
    }
    case 'CAIRN_PASSPHRASE_FILE':
      return passphrase((await contentOf(value)).toString('utf8'));
    case 'CAIRN_PASSPHRASE':
      return passphrase(value);
  }
}

/** @throws KEY_NEEDED for an empty one */
export function passphrase(text: string): Secret {
  const line = text.split(/\r?\n/, 1)[0]!;
  if (line === '') throw needed('the passphrase is empty');
  return { kind: 'passphrase', bytes: Buffer.from(line.normalize('NFC'), 'utf8') };
}

function keyOf(bytes: Buffer, path: string): Secret {
  if (bytes.length >= LEAST_KEY_BYTES) return { kind: 'key-file', bytes };
  throw needed(`the key file ${path} has fewer than ${LEAST_KEY_BYTES} bytes`);
}

async function contentOf(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw needed(`${path} cannot be read (${systemErrorCode(error) ?? 'unknown error'})`);
  }
}

export function needed(what: string): CheckpointError {
  return new CheckpointError('KEY_NEEDED', what, {
    hint: `give a key: --key-file, --passphrase-file or --passphrase-command, or one of ${SECRET_VARIABLES.join(', ')}`,
  });
}
