/**
 * Tests run as compiled by tsc, without a transform: what is tested is what ships, and worker threads
 * and child processes started by a test load the same files.
 */
export default {
  testEnvironment: '<rootDir>/dist/test/support/folder-environment.js',
  cacheDirectory: '<rootDir>/node_modules/.cache/jest',
  roots: ['<rootDir>/dist/test'],
  testMatch: ['**/*.test.js'],
  transform: {},
  testTimeout: 300_000,
};
