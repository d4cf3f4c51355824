/** Options that say where the key of an encrypted repository comes from. They stand before the environment's. */

import { SECRET_VARIABLES, type SecretVariable } from '../storage/sealing/secret-names.js';
import type { AskSecret } from '../storage/open.js';
import { askHidden, canAsk } from './ask.js';

export interface KeyOptions {
  readonly keyFile?: string;
  readonly passphraseFile?: string;
  readonly passphraseCommand?: string;
}

const VARIABLES: readonly (readonly [keyof KeyOptions, SecretVariable])[] = [
  ['keyFile', 'CAIRN_KEY_FILE'],
  ['passphraseCommand', 'CAIRN_PASSPHRASE_COMMAND'],
  ['passphraseFile', 'CAIRN_PASSPHRASE_FILE'],
];

/** Into the environment: a page server that outlives the command opens the repository, too. */
export function takeKeyOptions(options: KeyOptions): void {
  const given = VARIABLES.filter(([option]) => options[option] !== undefined);
  if (given.length === 0) return;
  for (const name of SECRET_VARIABLES) Reflect.deleteProperty(process.env, name);
  for (const [option, variable] of given) process.env[variable] = options[option];
}

/** @returns undefined when nobody is there */
export function askForKey(signal: AbortSignal): AskSecret | undefined {
  if (!canAsk()) return undefined;
  return async () => {
    const { passphrase } = await import('../storage/sealing/secret.js');
    return passphrase(await askHidden('passphrase of the repository: ', signal));
  };
}

/** Asked twice, since a slip would be found only when it is too late. */
export function askForNewKey(signal: AbortSignal): AskSecret | undefined {
  if (!canAsk()) return undefined;
  return async () => {
    const { needed, passphrase } = await import('../storage/sealing/secret.js');
    const first = await askHidden('new passphrase: ', signal);
    if ((await askHidden('once more: ', signal)) !== first) throw needed('the two passphrases differ');
    return passphrase(first);
  };
}
