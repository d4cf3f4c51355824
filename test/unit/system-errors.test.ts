import { getSystemErrorName } from 'node:util';
import { describe, expect, it } from '@jest/globals';

import { systemErrorCode } from '../../src/errors.js';
import { errnoName } from '../../src/ffi/libc.js';
import { fromSystemError } from '../../src/storage/storage-errors.js';

/** As Node.js throws it. */
function thrown(errno: number): Error {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: write`), { errno: -errno, code, syscall: 'write' });
}

describe('an error of the system', () => {
  it.each([
    [2, 'ENOENT'],
    [28, 'ENOSPC'],
    // libuv has no name for these.
    [122, 'EDQUOT'],
    [116, 'ESTALE'],
  ])('%i is %s', (errno, name) => {
    expect(systemErrorCode(thrown(errno))).toBe(name);
    expect(errnoName(errno)).toBe(name);
  });

  it('of a quota that is used up is a storage that is full', () => {
    const error = fromSystemError(thrown(122), 'writing', 'config', 'file:/srv/cairn');
    expect(error).toMatchObject({ code: 'STORAGE_FULL', detail: { errno: 'EDQUOT' } });
  });
});
