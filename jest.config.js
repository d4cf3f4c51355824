/**
 * Tests run as compiled by tsc, without a transform: what is tested is what ships, and worker threads
 * and child processes started by a test load the same files.
 */
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/dist/test'],
  testMatch: ['**/*.test.js'],
  transform: {},
  testTimeout: 120_000,
};
