import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn } from './support/cairn-cli.js';
import { SOURCE_ROOT } from './support/lab-files.js';

interface Analysis {
  readonly statistics: {
    readonly epochs: readonly { readonly dirty_pages: number }[];
    readonly mean_changed_bytes: number;
  };
  readonly advice: { readonly intervals: readonly unknown[]; readonly reasons: readonly string[] };
}

describe('cairn analyze', () => {
  let machine: LabMachine;
  let options: { dir: string };
  let repo = '';

  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'analyze', memoryMib: 128 });
    options = { dir: machine.dir };
    repo = join(machine.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest('lab memory 8');
  });
  afterAll(() => machine.destroy());

  function expectStudy(result: unknown, epochs: number): void {
    const { statistics, advice } = result as Analysis;
    expect(statistics.epochs).toHaveLength(epochs);
    for (const { dirty_pages } of statistics.epochs) expect(dirty_pages).toBeGreaterThan(0);
    expect(statistics.mean_changed_bytes).toBeGreaterThan(0);
    expect(statistics.mean_changed_bytes).toBeLessThan(4096);
    expect(advice.intervals.length).toBeGreaterThan(1);
  }

  it('samples a running VM, which goes on, and whose next checkpoint compares', async () => {
    const compared = ['checkpoint', machine.address, '--repo', repo];
    await cairn(compared, options);
    const out = join(machine.dir, 'vm.html');
    expectStudy(
      await cairn(['analyze', machine.address, '--epoch', '0.2', '--epochs', '4', '--out', out], options),
      4,
    );
    await machine.waitForProgress();
    expect(readFileSync(out, 'utf8')).toContain('</html>');
    expect((await cairn(compared, options)).compare_reason).not.toBe('');
    expect((await cairn(compared, options)).compare_reason).toBe('');
  });

  it('reads the increments of a repository', async () => {
    expectStudy(await cairn(['analyze', '--repo', repo], options), 2);
  });

  it('reads a trace', async () => {
    const sample = join(SOURCE_ROOT, 'bench/trace/samples/scattered-200ms.trace');
    expectStudy(await cairn(['analyze', sample], options), 3);
  });
});
