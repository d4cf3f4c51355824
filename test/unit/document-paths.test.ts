import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { describe, expect, it } from '@jest/globals';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const DOCUMENTS = [
  'README.md',
  'CONTRIBUTING.md',
  'packaging/README.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];
/** What starts so is a path in this tree, and not one of the host or of a repository of checkpoints. */
const IN_THIS_TREE = /^(?:src|adapters|test|bench|docs|packaging|examples|dist)\//;

/** Paths in backticks: those that begin with a folder of this tree, with a word for a name where they stand for several. */
function namedPaths(text: string): readonly string[] {
  return [...text.matchAll(/`([^`\s]+)`/g)]
    .map((match) => match[1]!)
    .filter((path) => IN_THIS_TREE.test(path) && !/[A-Z]{4,}|[<>{}$]/.test(path));
}

/** What is compiled lies in dist/ under the name of its source. */
function exists(path: string): boolean {
  const source = path.replace(/^dist\/(.*)\.js$/, '$1.ts').replace(/^dist\//, '');
  if (!source.includes('*')) return existsSync(join(ROOT, source));
  const folder = dirname(source);
  const name = new RegExp(
    `^${source
      .slice(folder.length + 1)
      .replaceAll('.', '\\.')
      .replaceAll('*', '.*')}$`,
  );
  return existsSync(join(ROOT, folder)) && readdirSync(join(ROOT, folder)).some((entry) => name.test(entry));
}

/** As GitHub makes anchors of headings: lower case, blanks to dashes, no punctuation. */
function anchorsOf(text: string): readonly string[] {
  return [...text.matchAll(/^#+ (.*)$/gm)].map((match) =>
    match[1]!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

describe.each(DOCUMENTS)('%s', (name) => {
  const text = readFileSync(join(ROOT, name), 'utf8');

  it('names no file that is not there', () => {
    expect(namedPaths(text).filter((path) => !exists(path))).toEqual([]);
  });

  it('links to files and headings that are there', () => {
    const links = [...text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)];
    const broken = links.filter(([, path, anchor]) => {
      const target = path === '' ? join(ROOT, name) : join(ROOT, dirname(name), path!);
      if (!existsSync(target)) return true;
      return anchor !== undefined && !anchorsOf(readFileSync(target, 'utf8')).includes(anchor);
    });
    expect(broken.map(([link]) => link)).toEqual([]);
  });
});

describe('a document that names a file which is not there', () => {
  it('is found out', () => {
    const named = namedPaths(
      'See `src/index.ts`, `src/gone.ts`, `dist/src/index.js`, `test/unit/*.nothing` and `/run/cairn`.',
    );
    expect(named.filter((path) => !exists(path))).toEqual(['src/gone.ts', 'test/unit/*.nothing']);
  });
});
