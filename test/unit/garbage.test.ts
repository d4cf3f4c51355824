import { execFileSync } from 'node:child_process';

import { describe, expect, it } from '@jest/globals';

const MODULE = new URL('../../src/host/garbage.js', import.meta.url).href;
/** In a process of its own: what other tests have left for the collector would be counted as well. */
const SCRIPT = `
  import { setTimeout as sleep } from 'node:timers/promises';
  import { collectGarbage, letHeapGrow } from '${MODULE}';
  letHeapGrow();
  collectGarbage();
  const held = Array.from({ length: 64 }, () => new Uint8Array(1 << 20));
  const before = process.memoryUsage().arrayBuffers;
  held.length = 0;
  collectGarbage();
  // The memory of buffers is freed on a thread beside, some time after the collection.
  const isFreed = () => process.memoryUsage().arrayBuffers < before - (32 << 20);
  for (let i = 0; i < 1000 && !isFreed(); i++) await sleep(20);
  console.log(isFreed());
`;

describe('the collection between checkpoints', () => {
  it('frees what nothing refers to any more', () => {
    const said = execFileSync(process.execPath, ['--input-type=module', '-e', SCRIPT], { encoding: 'utf8' });
    expect(said).toBe('true\n');
  });
});
