/**
 * Puts what the command consists of into few files, since a Node.js that looks for some hundred modules before it does
 * anything is what a short command waits for longest:
 *
 *     dist/src, dist/adapters --> bundle/src/cli/main.js, a file for each program and module that is loaded by its URL
 *                                 bundle/chunks/*         what they share
 *
 * An entry keeps its place below the root, and a module's `import.meta.url` stays the place that it had in dist/: so
 * `new URL('./worker.js', import.meta.url)` finds the same file in both. Packages that find files of their own stay outside.
 */

import { cp, readFile, readdir, rm } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

import { build } from 'esbuild';

const FROM = fileURLToPath(new URL('../dist/', import.meta.url));
const TO = fileURLToPath(new URL('../bundle/', import.meta.url));
const FOLDERS = ['src', 'adapters'];
const KERNELS = 'src/kernels/kernels.wasm';
/** koffi and piscina load files that lie beside them; the other two are large, and for one command only. */
const OUTSIDE = ['koffi', 'piscina', 'linkedom', '@observablehq/plot'];

const OWN_URL = 'import.meta.url';
/** Of a program or a module that somebody loads by its URL. */
const LOADED = /new URL\('(\.[^']+\.js)', import\.meta\.url\)/g;
/** A module that hands out its own URL. */
const HANDS_OUT_ITSELF = /\bmoduleUrl: import\.meta\.url\b/;
const ROOT_MODULE = 'cairn-root';
/** Chunks lie one folder below the root, and this module, which all entries share, in one of them. */
const ROOT_TEXT = `export default new URL('../', ${OWN_URL}).href;`;
/** What packages in CommonJS expect. */
const REQUIRE =
  "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);";

async function entries() {
  const found = new Set(['src/cli/main.js']);
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

const ownUrls = {
  name: 'own-urls',
  setup(bundler) {
    bundler.onResolve({ filter: new RegExp(`^${ROOT_MODULE}$`) }, ({ path }) => ({ path, namespace: path }));
    bundler.onLoad({ filter: /.*/, namespace: ROOT_MODULE }, () => ({ contents: ROOT_TEXT }));
    bundler.onLoad({ filter: /\.js$/ }, async ({ path }) => {
      if (!FOLDERS.some((folder) => path.startsWith(join(FROM, folder) + sep))) return undefined;
      const text = await readFile(path, 'utf8');
      if (!text.includes(OWN_URL)) return undefined;
      const place = JSON.stringify(relative(FROM, path).replaceAll(sep, '/'));
      const contents = text.replaceAll(OWN_URL, `new URL(${place}, cairnRoot).href`);
      return { contents: `import cairnRoot from '${ROOT_MODULE}';\n${contents}` };
    });
  },
};

await rm(TO, { recursive: true, force: true });
const { metafile } = await build({
  absWorkingDir: FROM,
  entryPoints: await entries(),
  outdir: TO,
  outbase: FROM,
  chunkNames: 'chunks/[hash]',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  external: OUTSIDE,
  banner: { js: REQUIRE },
  plugins: [ownUrls],
  metafile: true,
  logLevel: 'warning',
});
const [root] = Object.entries(metafile.outputs).find(
  ([, { inputs }]) => `${ROOT_MODULE}:${ROOT_MODULE}` in inputs,
);
if (!relative(TO, join(FROM, root)).startsWith('chunks'))
  throw new Error(`the root is looked for from ${root}`);
await cp(join(FROM, KERNELS), join(TO, KERNELS));
