import { describe, expect, test } from '@jest/globals';

import { askedOnce } from '../../adapters/qemu/asked-once.js';
import type { Monitor } from '../../adapters/qemu/monitor.js';

describe('a look at a QEMU', () => {
  test('puts each question once, and shares the answer', async () => {
    const { monitor, asked } = countingMonitor();
    const look = askedOnce(monitor);
    const [first, second] = await Promise.all([look.execute('query-block'), look.execute('query-block')]);
    expect(second).toBe(first);
    expect(await look.execute('query-block')).toBe(first);
    expect(asked).toEqual(['query-block {}']);
  });

  test('tells questions about different objects apart', async () => {
    const { monitor, asked } = countingMonitor();
    const look = askedOnce(monitor);
    await look.execute('qom-list', { path: '/machine/peripheral' });
    await look.execute('qom-list', { path: '/machine/peripheral-anon' });
    expect(asked).toEqual([
      'qom-list {"path":"/machine/peripheral"}',
      'qom-list {"path":"/machine/peripheral-anon"}',
    ]);
  });

  test('shares a failure, too, and the next look asks again', async () => {
    const { monitor, asked } = countingMonitor(new Error('gone'));
    const look = askedOnce(monitor);
    await expect(look.execute('query-status')).rejects.toThrow('gone');
    await expect(look.execute('query-status')).rejects.toThrow('gone');
    await expect(askedOnce(monitor).execute('query-status')).rejects.toThrow('gone');
    expect(asked).toHaveLength(2);
  });
});

function countingMonitor(failure?: Error): { readonly monitor: Monitor; readonly asked: string[] } {
  const asked: string[] = [];
  const monitor: Monitor = {
    execute: (command, args = {}) => {
      asked.push(`${command} ${JSON.stringify(args)}`);
      return failure === undefined ? Promise.resolve({ command }) : Promise.reject(failure);
    },
    onEvent: () => () => undefined,
    close: () => Promise.resolve(),
  };
  return { monitor, asked };
}
