/** The inputs that are kept, and their files. They lie in the source tree, while this runs from dist/. */

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const CORPUS = fileURLToPath(new URL('../../../test/fuzz/corpus/', import.meta.url));
const TARGETS = fileURLToPath(new URL('./targets/', import.meta.url));

export interface KeptInput {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Names of all targets. */
export function targetNames(): readonly string[] {
  return readdirSync(TARGETS)
    .flatMap((file) => /^(.+)\.js$/.exec(file)?.[1] ?? [])
    .sort();
}

/** By name, so that a seed means the same on every host. */
export function readCorpus(target: string): readonly KeptInput[] {
  const folder = join(CORPUS, target);
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .sort()
    .map((name) => ({ name, bytes: new Uint8Array(readFileSync(join(folder, name))) }));
}

/** @returns the path; the same input gets the same one */
export function keepInput(folder: string, prefix: string, bytes: Uint8Array): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${prefix}-${createHash('sha256').update(bytes).digest('hex').slice(0, 12)}`);
  writeFileSync(path, bytes);
  return path;
}
