/**
 * node dist/test/golden/main.js FOLDER...: reads these repositories, and prints the first problem of each that has one. A process of its own,
 * because what jest loads looks up every global in another context, which makes hashing many times as slow.
 */

import { verifyRepository } from './verifier.js';

for (const folder of process.argv.slice(2)) {
  try {
    verifyRepository(folder, { withRegions: false });
  } catch (error) {
    process.stdout.write(`${folder}: ${String(error)}\n`);
    process.exitCode = 1;
  }
}
