/**
 * The table of layers of docs/architecture.md as lint rules; `npm run lint` runs them, and a unit test holds table and list together.
 *
 * Every folder of src and adapters is in one row, and imports what stands in rows below its own. Folders of one row do not
 * know each other. Imports of types count. The adapters stand among the rows of the core, because what they may import is
 * what is below them; a folder of the core that is above them still imports none of them, only `src/index.ts` does.
 */

/** From top to bottom. A folder in a row counts without those below it that have rows of their own. */
export const layers = [
  { name: 'command line', folders: ['src/cli'] },
  { name: 'library', folders: ['src/index.ts'], importsAdapters: true },
  { name: 'tasks', folders: ['src/intake', 'src/restore', 'src/rewind', 'src/study'] },
  { name: 'engine', folders: ['src/checkpoint'] },
  { name: 'disk snapshots', folders: ['src/disks'] },
  { name: 'stores', folders: ['src/repository', 'src/pool', 'src/study/trace'] },
  { name: 'format', folders: ['src/format'] },
  { name: 'storage', folders: ['src/storage'] },
  { name: 'management', folders: ['adapters/libvirt'] },
  { name: 'hypervisors', folders: ['adapters/kvm', 'adapters/xen'] },
  { name: 'disk drivers', folders: ['adapters/disks'] },
  { name: 'adapter parts', folders: ['adapters/qemu', 'adapters/guard'] },
  { name: 'host', folders: ['src/host'] },
  { name: 'contracts', folders: ['src/hypervisor'] },
  { name: 'bitmaps', folders: ['src/bitmap'] },
  { name: 'hot loops, system', folders: ['src/kernels', 'src/ffi'] },
  { name: 'records', folders: ['src/records'] },
  { name: 'words', folders: ['src/errors.ts', 'src/text.ts'] },
  { name: 'units', folders: ['src/types.ts'] },
];

/**
 * Files that nothing imports: programs, and modules that are loaded by their URL, in a worker thread, a child process or for
 * reading a guest's memory. Whatever none of them leads to is dead.
 */
const entryPoints = [
  '^src/cli/main[.]ts$',
  '^src/index[.]ts$',
  '^src/pool/worker[.]ts$',
  '-main[.]ts$',
  '/guest-reader[.]ts$',
  '^src/intake/memory-file[.]ts$',
  '^adapters/kvm/restore/lazy/serve-pages[.]ts$',
  '^adapters/kvm/trackers/qmp-stream/staging-reader[.]ts$',
  // For a VMM that holds its own KVM file descriptors, and so embeds this tracker: `cairn/kvm-dirty-log`.
  '^adapters/kvm/trackers/dirty-log/index[.]ts$',
  // A backend for trials and tests, and the twins that the WebAssembly kernels are held against.
  '^src/storage/memory[.]ts$',
  '^src/kernels/scalar[.]ts$',
  '[.]d[.]ts$',
];

/** Imports that break a layer today: `from` still needs `to` because of `reason`. Only ever gets shorter. */
export const exceptions = [];

const CODE = '^(src|adapters)/';

/** A folder with all that is in it, or a file. */
const pathOf = (place) => `^${place.replaceAll('.', '[.]')}${place.endsWith('.ts') ? '$' : '/'}`;

const isBelow = (place, folder) => place.startsWith(`${folder}/`);

/** Rows below row `i`, without adapters where they must not be imported. */
function rowsBelow(i) {
  const mayImportAdapters = layers[i].importsAdapters === true;
  return layers
    .slice(i + 1)
    .flatMap(({ folders }) => folders)
    .filter((folder) => mayImportAdapters || isAdapter(layers[i].folders[0]) || !isAdapter(folder));
}

const isAdapter = (folder) => folder.startsWith('adapters/');

/** One folder imports itself and what is in rows below it; a folder inside it that has a row of its own goes by that row. */
function layerRules() {
  const all = layers.flatMap(({ folders }) => folders);
  return layers.flatMap((row, i) =>
    row.folders.flatMap((folder) => {
      const inner = all.filter((other) => isBelow(other, folder)).map(pathOf);
      const excepted = exceptions.filter(({ from }) => isBelow(from, folder) || from === folder);
      const allowed = [folder, ...rowsBelow(i)].map(pathOf);
      const rule = (name, from, more = []) => ({
        name,
        comment: `${folder} is of the layer "${row.name}" and imports only what is below it (docs/architecture.md, layers)`,
        severity: 'error',
        from,
        to: { path: CODE, pathNot: [...allowed, ...more] },
      });
      return [
        rule(`layer-of-${folder}`, {
          path: pathOf(folder),
          pathNot: [...inner, ...excepted.map(({ from }) => pathOf(from))],
        }),
        ...excepted.map(({ from, to }) =>
          rule(`layer-of-${from}`, { path: pathOf(from) }, [`^${to.replaceAll('.', '[.]')}$`]),
        ),
      ];
    }),
  );
}

export default {
  forbidden: [
    ...layerRules(),
    {
      name: 'every-folder-has-a-layer',
      comment: 'name the folder in a row of the layers, here and in docs/architecture.md',
      severity: 'error',
      from: { path: CODE, pathNot: layers.flatMap(({ folders }) => folders).map(pathOf) },
      to: {},
    },
    {
      name: 'no-circles',
      comment: 'modules that import each other, types included, cannot be read or changed one at a time',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    {
      name: 'no-tests-in-the-product',
      comment: 'tests, benchmarks and examples import the product, not the other way round',
      severity: 'error',
      from: { path: CODE },
      to: { path: '^(test|bench|demo|examples)/' },
    },
    {
      name: 'no-dead-modules',
      comment:
        'no program, worker or export leads to this module: remove it, or name it among the entry points',
      severity: 'error',
      from: { path: entryPoints },
      to: { path: CODE, pathNot: entryPoints, reachable: false },
    },
    {
      name: 'no-undeclared-packages',
      comment: 'a package that the product imports is in "dependencies" of package.json',
      severity: 'error',
      from: { path: CODE },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown', 'undetermined'] },
    },
    {
      name: 'no-unresolved-imports',
      comment: 'the imported file does not exist',
      severity: 'error',
      from: { path: CODE },
      to: { couldNotResolve: true },
    },
  ],
  options: {
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    doNotFollow: { path: 'node_modules' },
    // The kernels are AssemblyScript, a language of its own.
    exclude: { path: '^src/kernels/assembly/' },
  },
};
