/** What a key of an object looks like: segments of [A-Za-z0-9._-] joined by "/", none of them "." or "..". */

/** The object with the keys of an encrypted repository: a repository that has it is one. */
export const KEYS_KEY = 'keys';

const SEGMENT = /^[A-Za-z0-9._-]+$/;

export function isKeySegment(name: string): boolean {
  return SEGMENT.test(name) && name !== '.' && name !== '..';
}

/**
 * @throws RangeError: a key comes from the program, never from a file, so a bad one is a mistake of the
 *   caller
 */
export function assertKey(key: string): void {
  if (!key.split('/').every(isKeySegment)) throw new RangeError(`"${key}" is not a storage key`);
}

/** Order of `list`: by UTF-16 code unit, which for keys is by byte. */
export function compareKeys(a: { readonly key: string }, b: { readonly key: string }): number {
  return a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
}
