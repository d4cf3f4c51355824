import { describe, expect, it } from '@jest/globals';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

import { SOURCE_ROOT } from '../lab/support/lab-files.js';

interface Row {
  readonly name: string;
  readonly folder: string;
}

const { layers } = (await import(pathToFileURL(join(SOURCE_ROOT, '.dependency-cruiser.mjs')).href)) as {
  readonly layers: readonly { readonly name: string; readonly folders: readonly string[] }[];
};
const enforced: readonly Row[] = layers.flatMap(({ name, folders }) =>
  folders.map((folder) => ({ name, folder })),
);

/** Rows of the table in docs/architecture.md; one without a name belongs to the layer above it. */
function documentedRows(): readonly Row[] {
  const text = readFileSync(join(SOURCE_ROOT, 'docs/architecture.md'), 'utf8');
  const section = text.split('\n## ').find((part) => part.startsWith('Layers\n'))!;
  let name = '';
  return [...section.matchAll(/^\| ([a-z, ]*?) ?\| `([^`]+)` \|/gm)].map((row) => {
    name = row[1]! || name;
    return { name, folder: row[2]! };
  });
}

describe('the layers that lint enforces', () => {
  it('are the table of docs/architecture.md', () => {
    expect(enforced).toEqual(documentedRows());
  });

  it('hold every folder and file of src and adapters, and nothing that is not there', () => {
    const present = ['src', 'adapters'].flatMap((top) =>
      readdirSync(join(SOURCE_ROOT, top)).map((name) => `${top}/${name}`),
    );
    const folders = enforced.map(({ folder }) => folder);
    expect(present.filter((place) => !folders.includes(place))).toEqual([]);
    expect(folders.filter((folder) => !existsSync(join(SOURCE_ROOT, folder)))).toEqual([]);
  });
});
