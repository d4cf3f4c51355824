/** The owners of a VM's pages: when they are started, and which pages are whose. The threads are real, the VM is a file. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { ENCODE_BATCH_PAGES, STRIPE_PAGES } from '../../src/pool/messages.js';
import { SharePool } from '../../src/pool/share-pool.js';
import { countRunPages, PAGE_SIZE_BYTES, type PageRuns } from '../../src/types.js';

const PAGES = 3 * STRIPE_PAGES;
const ALL: PageRuns = Uint32Array.of(0, PAGES);

let dir: string;
let pool: SharePool;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-share-pool-'));
  writeFileSync(join(dir, 'memory'), Buffer.alloc(PAGES * PAGE_SIZE_BYTES, 'page'));
  pool = new SharePool({ workers: 2, cacheBytes: 1 << 20, level: 3 });
});
afterEach(async () => {
  await pool.close();
  rmSync(dir, { recursive: true });
});

function readFrom(memory: string): void {
  const options = {
    memoryPath: join(dir, memory),
    faultPath: join(dir, 'fault'),
    gonePath: join(dir, 'gone'),
  };
  pool.open({ moduleUrl: new URL('../support/fake-guest-reader.js', import.meta.url).href, options });
}

const partsOf = (runs: PageRuns): readonly number[] => pool.split(runs).map(countRunPages);

describe('a pool of two workers', () => {
  it('has one owner of all pages as long as there is little to copy', async () => {
    readFrom('memory');
    await pool.opened();
    await pool.widen(ENCODE_BATCH_PAGES);
    expect(partsOf(ALL)).toEqual([PAGES]);
    expect(await pool.capture(ALL)).toBe(PAGES);
  });

  it('has two, with a stripe for each in turn, once there is more, and stays so', async () => {
    readFrom('memory');
    await pool.opened();
    await pool.widen(ENCODE_BATCH_PAGES + 1);
    expect(partsOf(ALL)).toEqual([2 * STRIPE_PAGES, STRIPE_PAGES]);
    expect(await pool.capture(ALL)).toBe(PAGES);
    await pool.reset();
    await pool.widen(1);
    expect(partsOf(ALL)).toEqual([2 * STRIPE_PAGES, STRIPE_PAGES]);
  });

  it('says why its reader cannot be opened', async () => {
    readFrom('nothing');
    await expect(pool.opened()).rejects.toMatchObject({ code: 'WORKER_FAILED' });
  });

  it('stays with one owner when the others cannot be started', async () => {
    readFrom('memory');
    await pool.opened();
    rmSync(join(dir, 'memory'));
    await expect(pool.widen(ENCODE_BATCH_PAGES + 1)).rejects.toMatchObject({ code: 'WORKER_FAILED' });
    expect(partsOf(ALL)).toEqual([PAGES]);
    expect(await pool.capture(ALL)).toBe(PAGES);
  });

  it('is closed before it was told where to read, and before it was ready', async () => {
    await pool.close();
    pool = new SharePool({ workers: 2, cacheBytes: 1 << 20, level: 3 });
    readFrom('memory');
    await pool.close();
    // It was waited for: a thread that is ended in its start may take the process along.
    await pool.opened();
  });
});
