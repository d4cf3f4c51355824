import { cpSync, existsSync, mkdtempSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeEach, describe, expect, it } from '@jest/globals';

import { removeWithRepositories } from '../lab/support/left-repositories.js';

const FIXTURE = fileURLToPath(new URL('../../../test/golden/repository-v1/repo', import.meta.url));

describe('the folder of a lab machine', () => {
  let folder = '';
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'cairn-left-'));
    for (const name of ['repo', 'deep/in/it/repo']) cpSync(FIXTURE, join(folder, name), { recursive: true });
    // Of some other program.
    writeFileSync(join(folder, 'config'), 'verbose=1');
  });

  it('goes when its repositories are as they should be', () => {
    removeWithRepositories(folder);
    expect(existsSync(folder)).toBe(false);
  });

  it('goes with an error that names what is wrong with which repository', () => {
    truncateSync(join(folder, 'deep/in/it/repo/config'));
    expect(() => removeWithRepositories(folder)).toThrow(/deep\/in\/it\/repo: .*seal of config/);
    expect(existsSync(folder)).toBe(false);
  });

  it('goes when the repositories that are not as they should be were damaged on purpose', () => {
    const damaged = join(folder, 'deep/in/it/repo');
    truncateSync(join(damaged, 'config'));
    removeWithRepositories(folder, new Set([damaged]));
    expect(existsSync(folder)).toBe(false);
  });

  it('may be gone already', () => {
    removeWithRepositories(join(folder, 'nowhere'));
  });
});
