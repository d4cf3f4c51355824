import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { ensureXenLab, runXenLab, type LabRun } from './xen/run-lab.js';

/**
 * One checkpoint and one restore of the Xen suite: a real Xen 4.17 with a PVH guest, under QEMU without KVM. All of it: `node dist/test/lab/xen/run-lab.js`.
 * CAIRN_XEN_LAB names other scenarios, separated by commas; `all` for all of them.
 */
const LIMIT_S = 3600;
const problem = ensureXenLab();
if (problem !== '') process.stderr.write(`the Xen lab is skipped: ${problem}\n`);

(problem === '' ? describe : describe.skip)('checkpoints on a real Xen', () => {
  const chosen = process.env.CAIRN_XEN_LAB ?? 'smoke';
  const outDir = mkdtempSync(join(tmpdir(), 'cairn-xen-results-'));
  let run: LabRun;

  beforeAll(() => {
    if (chosen === 'smoke') process.env.XEN_LAB_NICE ??= '0';
    run = runXenLab(chosen === 'all' ? [] : chosen.split(','), { outDir, limitS: LIMIT_S });
  }, LIMIT_S * 1000);
  afterAll(() => rmSync(outDir, { recursive: true, force: true }));

  it('dom0 boots, runs the suite and comes to an end', () => {
    const console = readFileSync(join(outDir, 'console.log'), 'latin1').slice(-4000);
    expect({ exitCode: run.exitCode, console: run.exitCode === 0 ? '' : console }).toEqual({
      exitCode: 0,
      console: '',
    });
    expect(run.results.length).toBeGreaterThan(0);
  });

  it('every page of every checkpoint is that of the suspended guest, and restored guests carry on', () => {
    expect(run.results.filter(({ ok }) => !ok)).toEqual([]);
  });
});
