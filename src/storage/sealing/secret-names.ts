/** Where a secret may come from, in this order (`secret.ts`). */

export const SECRET_VARIABLES = [
  'CAIRN_KEY_FILE',
  'CAIRN_PASSPHRASE_COMMAND',
  'CAIRN_PASSPHRASE_FILE',
  'CAIRN_PASSPHRASE',
] as const;

export type SecretVariable = (typeof SECRET_VARIABLES)[number];

export type SecretEnvironment = Readonly<Record<string, string | undefined>>;

/** The first of the variables that says something. */
export function namedSecret(env: SecretEnvironment): SecretVariable | undefined {
  return SECRET_VARIABLES.find((name) => (env[name] ?? '') !== '');
}

export function isSecretNamed(env: SecretEnvironment): boolean {
  return namedSecret(env) !== undefined;
}
