/**
 * Puts what the command consists of into few files, since a Node.js that looks for some hundred modules before it does
 * anything is what a short command waits for longest:
 *
 *     dist/src, dist/adapters --> bundle/src/cli/main.js  the command
 *                                 bundle/chunks/*         what it loads for one of its subcommands, or for several
 *                                 bundle/.../NAME.js      a program or module that is loaded by its URL, whole
 *
 * Such a program is built by itself: what it shared with the command would be cut into twice as many chunks.
 *
 * An entry keeps its place below the root, and a module's `import.meta.url` stays the place that it had in dist/: so
 * `new URL('./worker.js', import.meta.url)` finds the same file in both. Packages that find files of their own stay outside.
 */

import { cp, readFile, readdir, rm } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

import { build } from 'esbuild';

import { OUTSIDE } from './outside.mjs';

const FROM = fileURLToPath(new URL('../dist/', import.meta.url));
const TO = fileURLToPath(new URL('../bundle/', import.meta.url));
const FOLDERS = ['src', 'adapters'];
const COMMAND = 'src/cli/main.js';
const KERNELS = 'src/kernels/kernels.wasm';

const OWN_URL = 'import.meta.url';
/** Of a program or a module that somebody loads by its URL. */
const LOADED = /new URL\('(\.[^']+\.js)', import\.meta\.url\)/g;
/** A module that hands out its own URL. */
const HANDS_OUT_ITSELF = /\bmoduleUrl: import\.meta\.url\b/;
const ROOT_MODULE = 'cairn-root';
/** What packages in CommonJS expect. */
const REQUIRE =
  "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);";

/** Programs, and modules that are loaded by their URL; not the command. */
async function programs() {
  const found = new Set();
  for (const folder of FOLDERS) {
    for (const path of await readdir(join(FROM, folder), { recursive: true })) {
      const name = join(folder, path);
      if (name.endsWith('-main.js')) found.add(name);
      if (!name.endsWith('.js')) continue;
      const text = await readFile(join(FROM, name), 'utf8');
      for (const [, target] of text.matchAll(LOADED)) found.add(join(name, '..', target));
      if (HANDS_OUT_ITSELF.test(text)) found.add(name);
    }
  }
  return [...found].sort();
}

/** @param up from the file that the module comes to lie in to the root of the bundle, as a URL */
const ownUrls = (up) => ({
  name: 'own-urls',
  setup(bundler) {
    bundler.onResolve({ filter: new RegExp(`^${ROOT_MODULE}$`) }, ({ path }) => ({ path, namespace: path }));
    bundler.onLoad({ filter: /.*/, namespace: ROOT_MODULE }, () => ({
      contents: `export default new URL('${up}', ${OWN_URL}).href;`,
    }));
    bundler.onLoad({ filter: /\.js$/ }, async ({ path }) => {
      if (!FOLDERS.some((folder) => path.startsWith(join(FROM, folder) + sep))) return undefined;
      const text = await readFile(path, 'utf8');
      if (!text.includes(OWN_URL)) return undefined;
      const place = JSON.stringify(relative(FROM, path).replaceAll(sep, '/'));
      const contents = text.replaceAll(OWN_URL, `new URL(${place}, cairnRoot).href`);
      return { contents: `import cairnRoot from '${ROOT_MODULE}';\n${contents}` };
    });
  },
});

const bundled = (entry, up, more) =>
  build({
    absWorkingDir: FROM,
    entryPoints: [entry],
    outdir: TO,
    outbase: FROM,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    external: OUTSIDE,
    banner: { js: REQUIRE },
    plugins: [ownUrls(up)],
    logLevel: 'warning',
    ...more,
  });

await rm(TO, { recursive: true, force: true });
await Promise.all((await programs()).map((name) => bundled(name, '../'.repeat(name.split('/').length - 1))));
// Several of its files need the root, so it comes to lie in a chunk, one folder below.
const { metafile } = await bundled(COMMAND, '../', {
  splitting: true,
  chunkNames: 'chunks/[hash]',
  metafile: true,
});
const [root] = Object.entries(metafile.outputs).find(
  ([, { inputs }]) => `${ROOT_MODULE}:${ROOT_MODULE}` in inputs,
);
if (!relative(TO, join(FROM, root)).startsWith('chunks'))
  throw new Error(`the root is looked for from ${root}`);
await cp(join(FROM, KERNELS), join(TO, KERNELS));
