import tseslint from 'typescript-eslint';
import prettier from 'eslint-config-prettier';

/** Each program of the bundle, and each module that one loads by its URL, has the class once more. */
const OWN_CLASS = {
  selector: "BinaryExpression[operator='instanceof'][right.name='CheckpointError']",
  message:
    'An error may come out of another file of the bundle, with a class of its own: ask isCheckpointError.',
};

/** Type-checked rules everywhere. Which folder imports which is for `.dependency-cruiser.mjs`. */
export default tseslint.config(
  { ignores: ['dist/', 'bundle/', 'node_modules/', 'src/kernels/assembly/', 'coverage/'] },
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.strictTypeChecked, ...tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/consistent-type-imports': 'error',
      // An empty string means "none" in several places, and `||` says so.
      '@typescript-eslint/prefer-nullish-coalescing': ['error', { ignorePrimitives: { string: true } }],
      // Index reads are already checked by noUncheckedIndexedAccess; "!" marks an index proven in range.
      '@typescript-eslint/no-non-null-assertion': 'off',
      'no-restricted-syntax': ['error', OWN_CLASS],
    },
  },
  {
    // Processes that outlive Cairn say so: the guards, the tracers, the QEMU of a restore, and who fills its memory. Watchers of the
    // service talk with it.
    files: ['src/**/*.ts', 'adapters/**/*.ts'],
    ignores: [
      'adapters/guard/pause-guard.ts',
      'adapters/kvm/fork/keeper.ts',
      'adapters/kvm/restore/process.ts',
      'adapters/kvm/trackers/pagemap-scan/tracer/tracer.ts',
      'src/cli/service/watcher.ts',
      'src/restore/lazy/page-keeper-main.ts',
      'src/restore/lazy/page-server.ts',
    ],
    rules: {
      'no-restricted-syntax': [
        'error',
        OWN_CLASS,
        {
          selector: "ImportDeclaration[source.value='node:child_process']",
          message: 'Programs run through src/host/run-program.ts.',
        },
      ],
    },
  },
  prettier,
);
