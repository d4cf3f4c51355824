import { describe, expect, it } from '@jest/globals';

import { runSuite } from '../support/run-suite.js';

describe('running a contract suite without jest', () => {
  it('runs cases in order, each followed by the hooks around it from the inside out', async () => {
    const steps: string[] = [];
    const step = (name: string) => () => {
      steps.push(name);
      return Promise.resolve();
    };
    const results = await runSuite(
      ({ describe: group, it: test, beforeAll, afterAll, afterEach }) => {
        group('outer', () => {
          beforeAll(step('before'));
          afterAll(step('after'));
          afterEach(step('after each'));
          test('first', step('first'));
          group('inner', () => {
            afterEach(step('after each inner'));
            test('second', step('second'));
          });
        });
      },
      ({ name }) => steps.push(`result of ${name}`),
    );
    expect(results.map(({ error }) => error)).toEqual([undefined, undefined]);
    expect(steps).toEqual([
      'before',
      'first',
      'after each',
      'result of outer > first',
      'second',
      'after each inner',
      'after each',
      'result of outer > inner > second',
      'after',
    ]);
  });

  it('reports a case that throws, rejects, or whose hook fails, and goes on', async () => {
    const results = await runSuite(
      ({ describe: group, it: test, afterEach }) => {
        test('throws', () => {
          throw new Error('thrown');
        });
        test('rejects', () => Promise.reject(new Error('rejected')));
        group('with a hook', () => {
          afterEach(() => Promise.reject(new Error('of the hook')));
          test('passes', () => undefined);
        });
        test('passes', () => undefined);
      },
      () => undefined,
    );
    expect(results.map(({ error = '' }) => /thrown|rejected|of the hook/.exec(error)?.[0])).toEqual([
      'thrown',
      'rejected',
      'of the hook',
      undefined,
    ]);
  });

  it('fails when nothing can be run', async () => {
    const run = (define: Parameters<typeof runSuite>[0]): Promise<unknown> =>
      runSuite(define, () => undefined);
    await expect(run(() => undefined)).rejects.toThrow('no case');
    await expect(
      run(({ it: test, beforeAll, afterAll }) => {
        beforeAll(() => Promise.reject(new Error('no guest')));
        afterAll(() => Promise.reject(new Error('no guest to end')));
        test('passes', () => undefined);
      }),
    ).rejects.toThrow(/^no guest$/);
  });
});
