import { closeSync, openSync } from 'node:fs';

import { describe, expect, it } from '@jest/globals';

import { errnoName, libc } from '../../src/ffi/libc.js';

const SYS_IOCTL = 16;
const SYS_GETPID = 39;
/** FIONREAD wants an address, and no number is one. */
const FIONREAD = 0x541bn;

describe('system calls on another thread', () => {
  it('answer with the value', async () => {
    expect(await libc().syscallLater(SYS_GETPID)).toEqual({ value: process.pid, errno: 0 });
  });

  it('answer with the number of the error, each with its own', async () => {
    const zero = openSync('/dev/zero', 'r');
    try {
      const calls = Array.from({ length: 40 }, async (_, i) => {
        const descriptor = i % 2 === 0 ? -1 : zero;
        const { value, errno } = await libc().syscallLater(SYS_IOCTL, descriptor, FIONREAD, 1);
        return [value, errnoName(errno)];
      });
      expect(await Promise.all(calls)).toEqual(calls.map((_, i) => [-1, i % 2 === 0 ? 'EBADF' : 'ENOTTY']));
    } finally {
      closeSync(zero);
    }
  });
});
