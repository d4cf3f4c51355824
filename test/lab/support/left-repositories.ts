/**
 * The repositories that a lab machine leaves behind, read by the verifier of test/golden. It shares no code with the product, so it sees what
 * the product writes and reads wrong in the same way.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const VERIFIER = fileURLToPath(new URL('../../golden/main.js', import.meta.url));

/**
 * Removes a folder of a test once the repositories below it were read.
 * @param damagedOnPurpose folders of repositories that are not read
 * @throws an error that names each repository with a problem, and its first problem; the folder is gone then, too
 */
export function removeWithRepositories(
  folder: string,
  damagedOnPurpose: ReadonlySet<string> = new Set(),
): void {
  try {
    mustBeWholeBelow(folder, damagedOnPurpose);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function mustBeWholeBelow(folder: string, damagedOnPurpose: ReadonlySet<string>): void {
  const repositories = repositoriesBelow(folder).filter((repo) => !damagedOnPurpose.has(repo));
  if (repositories.length === 0) return;
  const { status, stdout, stderr } = spawnSync(process.execPath, [VERIFIER, ...repositories], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  if (status !== 0) throw new Error(`left behind by the test:\n${stdout}${stderr}`);
}

function repositoriesBelow(folder: string): readonly string[] {
  if (isRepository(folder)) return [folder];
  return existsSync(folder)
    ? readdirSync(folder, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .flatMap(({ name }) => repositoriesBelow(join(folder, name)))
    : [];
}

/** Also one whose configuration is damaged, as long as there is a folder of chains beside it. */
function isRepository(folder: string): boolean {
  const config = join(folder, 'config');
  if (statSync(config, { throwIfNoEntry: false })?.isFile() !== true) return false;
  return existsSync(join(folder, 'vms')) || readFileSync(config, 'latin1').includes('cairn-repository');
}
