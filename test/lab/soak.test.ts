import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, describe, expect, it } from '@jest/globals';

import { SOURCE_ROOT, ensureLab, scratchDir } from './support/lab-files.js';

const LIFE = 6;

interface State {
  readonly checkpoints: number;
  readonly lives: number;
  readonly wrong: readonly unknown[];
}

describe('a short soak of checkpoints that are compared with all memory of the stopped VM', () => {
  const dir = scratchDir('short-soak');
  const state = join(dir, 'state.json');
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  /** Without looking for a KVM first: the lab needs none. */
  function soak(checkpoints: number): State {
    const program = join(SOURCE_ROOT, 'dist/test/nested/soak.js');
    const given = ['--checkpoints', `${checkpoints}`, '--life', `${LIFE}`, '--state', state];
    // Ends with status 1, which throws here, when a page is wrong.
    execFileSync(process.execPath, [program, ...given, '--result', join(dir, 'result.json')], {
      stdio: 'inherit',
      env: { ...process.env, CAIRN_ACCELERATOR: 'tcg' },
    });
    return JSON.parse(readFileSync(state, 'utf8')) as State;
  }

  it('finds no page wrong, goes on where it was, and keeps what came out', () => {
    ensureLab();
    expect(soak(LIFE)).toMatchObject({ checkpoints: LIFE, lives: 1, wrong: [] });
    // The second life has a disk that is read directly.
    expect(soak(3 * LIFE)).toMatchObject({ checkpoints: 3 * LIFE, lives: 3, wrong: [] });
    const results = JSON.parse(readFileSync(join(dir, 'result.json'), 'utf8')) as unknown;
    expect(results).toEqual([expect.objectContaining({ checkpoints: 3 * LIFE, wrong: 0, failures: 0 })]);
  }, 600_000);
});
