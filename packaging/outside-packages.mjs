/**
 * Copies the packages that the bundle leaves outside, with all that they need, into a folder: `node packaging/outside-packages.mjs
 * FOLDER`. Types, sources and other platforms' files stay behind.
 */

import { cp, mkdir, readFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

import { OUTSIDE } from './outside.mjs';

const FROM = fileURLToPath(new URL('../node_modules/', import.meta.url));
/** Of the packages, what nobody loads: types, sources, tests, documents, builds for browsers and other formats. */
const LEFT_OUT =
  /\.(?:ts|mts|cts|map|md|markdown|c|cc|cpp|h|hh|S|asm|def|gyp|gypi)$|[\\/](?:test|tests|doc|docs|bench|benchmark|benchmarks|example|examples|coverage|\.github|vendor)(?:[\\/]|$)|\.min\.(?:m?js)$|[\\/](?:\.[^/]*rc[^/]*|\.editorconfig|\.npmignore|\.eslint[^/]*|\.prettier[^/]*|\.travis.yml|bower\.json)$/;
/** By package: programs of its own, and what it would be compiled from. */
const LEFT_OUT_OF = { koffi: ['src/koffi/src/trampolines.cjs', 'cnoke.cjs'], 'd3-dsv': ['bin'] };
const LICENCE = /[\\/]licen[cs]e[^/]*$/i;

/** As Node.js finds it from there. */
function folderOf(name, from) {
  for (let at = from; at.startsWith(FROM.slice(0, -1)); at = dirname(at)) {
    const folder = join(at, 'node_modules', name);
    if (existsSync(join(folder, 'package.json'))) return folder;
  }
  const folder = join(FROM, name);
  return existsSync(join(folder, 'package.json')) ? folder : undefined;
}

async function withNeeded(names) {
  const found = new Set();
  const waiting = names.map((name) => ({ name, from: FROM, isOptional: false }));
  for (const { name, from, isOptional } of waiting) {
    const folder = folderOf(name, from);
    if (folder === undefined && isOptional) continue;
    if (folder === undefined) throw new Error(`${name}, which ${from} needs, is not installed: npm ci`);
    if (found.has(folder)) continue;
    found.add(folder);
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
      await readFile(join(folder, 'package.json'), 'utf8'),
    );
    for (const needed of new Set([...Object.keys(dependencies), ...Object.keys(optionalDependencies)]))
      waiting.push({ name: needed, from: folder, isOptional: needed in optionalDependencies });
  }
  return [...found];
}

const [to] = process.argv.slice(2);
if (to === undefined) throw new Error('usage: node packaging/outside-packages.mjs FOLDER');
for (const folder of await withNeeded(OUTSIDE)) {
  const target = join(to, relative(FROM, folder));
  const leftOut = (LEFT_OUT_OF[relative(FROM, folder)] ?? []).map((name) => join(folder, name));
  await mkdir(target, { recursive: true });
  await cp(folder, target, {
    recursive: true,
    // Packages inside are found by themselves.
    filter: (path) => {
      const name = path.slice(folder.length);
      if (leftOut.includes(path)) return false;
      return !/[\\/]node_modules(?:[\\/]|$)/.test(name) && (LICENCE.test(name) || !LEFT_OUT.test(name));
    },
  });
}
