/** QEMU's complaints repeat the option that they are about, and an option may hold a secret. */

import { splitValue, unescapeCommas, type QemuOption } from '../../disks/qcow2/command-line.js';

/** Keys whose values are secrets: of -object secret, -spice, -iscsi, -fw_cfg. */
const SECRET_KEY = /^(?:data|password|passwd|string)$/;
/** Shorter ones would be found everywhere. */
const MIN_SECRET_LENGTH = 3;
const INSTEAD = '...';

/**
 * `text` of a QEMU that was started with `options`, without the values of the options that it repeats, and
 * without secrets of any.
 */
export function withoutOptionValues(text: string, options: readonly QemuOption[]): string {
  let redacted = text;
  for (const { spelling, value } of options) {
    if (spelling === '' || value === undefined) continue;
    redacted = redacted.replaceAll(`${spelling} ${value}`, `${spelling} ${INSTEAD}`);
  }
  for (const secret of options.flatMap(secretsOf)) {
    if (secret.length >= MIN_SECRET_LENGTH) redacted = redacted.replaceAll(secret, INSTEAD);
  }
  return redacted;
}

function secretsOf({ name, value = '' }: QemuOption): readonly string[] {
  if (value.startsWith('{')) return secretsOfJson(value);
  return splitValue(value).flatMap((part) => {
    const equals = part.indexOf('=');
    const key = part.slice(0, equals);
    // Credentials for systemd come as OEM strings.
    if (!SECRET_KEY.test(key) && !(name === 'smbios' && key === 'value')) return [];
    const written = part.slice(equals + 1);
    return [written, unescapeCommas(written)];
  });
}

function secretsOfJson(value: string): readonly string[] {
  const found: string[] = [];
  try {
    JSON.parse(value, (key, item: unknown) => {
      if (SECRET_KEY.test(key) && typeof item === 'string') found.push(item);
      return item;
    });
  } catch {
    // No JSON after all: QEMU says so, and repeats it as the option's value.
  }
  return found;
}
