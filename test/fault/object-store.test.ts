/**
 * A writer whose object store stops answering at some request, in some way, for good. Requests of it may arrive late:
 * before the next writer takes the chain, or after that. What was told as committed is there and exact, what failed is
 * not there, ever, and the repository verifies.
 */

import { afterAll, beforeAll, expect, it } from '@jest/globals';

import { isCheckpointError } from '../../src/errors.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { openS3 } from '../../src/storage/s3/open-s3.js';
import { S3Backend } from '../../src/storage/s3/s3-backend.js';
import { S3Client } from '../../src/storage/s3/s3-client.js';
import { KeyRing } from '../../src/storage/sealing/key-ring.js';
import { SealedBackend } from '../../src/storage/sealing/sealed-backend.js';
import { FakeObjectStore, type StoreFault } from '../support/fake-object-store.js';
import { seeded } from '../support/seeded.js';
import { IDENTITY, ModelVm, mustReadBack, type Expected } from '../unit/repository-model.js';

const ROUNDS = 15;
/** About as many as a commit makes. */
const REQUESTS = 45;
const FAULTS: readonly StoreFault[] = ['reset', 'reset-after', 'busy', 'error-after', 'truncated', 'late'];
const KEYS = { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'secret', HOME: '/nonexistent' };

const ring = KeyRing.create();
const clients: S3Client[] = [];
let store: FakeObjectStore;

beforeAll(async () => {
  store = await FakeObjectStore.start();
});
afterAll(async () => {
  for (const client of clients) client.close();
  await store.stop();
});

/** As a process of its own would open it. @param giveUpMs short, or each round would take minutes */
async function backendFor(giveUpMs: number): Promise<SealedBackend> {
  const location = `s3://bucket/repo?endpoint=${store.endpoint}`;
  const { settings } = await openS3(location, KEYS);
  const client = new S3Client({ ...settings, giveUpMs }, { idleMs: 500 });
  clients.push(client);
  return new SealedBackend(new S3Backend(client, { location, prefix: 'repo' }), ring);
}

it(`is harmless at ${ROUNDS} random requests`, async () => {
  const random = seeded(5);
  const vm = new ModelVm();
  const committed: Expected[] = [];
  const told = { committed: 0, uncertain: 0, failed: 0 };
  await Repository.init(await backendFor(2000));
  for (let round = 0; round < ROUNDS; round++) {
    vm.scribble(20);
    const kind = FAULTS[random(FAULTS.length)]!;
    let left = 10 + random(REQUESTS);
    const repository = await Repository.open(await backendFor(50));
    store.fault = () => (left-- > 0 ? undefined : kind);
    const state = { memory: vm.memory.slice(), deviceState: vm.deviceState.slice(), layout: vm.layout };
    let isUncertain = false;
    try {
      const chain = await repository.openChainWriter('web1', IDENTITY);
      const { id } = await vm.checkpoint(chain);
      committed.push({ id, ...state });
      told.committed++;
      await chain.close();
    } catch (error) {
      isUncertain = isCheckpointError(error, 'CHECKPOINT_UNCERTAIN');
      if (committed.at(-1)?.memory !== state.memory) told[isUncertain ? 'uncertain' : 'failed']++;
    }
    store.fault = () => undefined;

    const next = await Repository.open(await backendFor(2000));
    if (random(2) === 0) store.release();
    // The lock is of this process, which lives.
    await next.unlock('web1', { force: true });
    const owner = await next.openChainWriter('web1', IDENTITY);
    const seen = (await next.checkpoints()).manifests.map(({ id }) => id);
    store.release();
    const { manifests, damaged } = await next.checkpoints();
    expect(damaged).toEqual([]);
    // What arrived after the next owner had looked has changed nothing.
    expect(manifests.map(({ id }) => id)).toEqual(seen);
    const others = seen.filter((id) => !committed.some((one) => one.id === id));
    expect(others.length).toBeLessThanOrEqual(isUncertain ? 1 : 0);
    for (const id of others) {
      committed.push({ id, ...state });
      vm.committed = state.memory;
    }
    expect(committed.map(({ id }) => id)).toEqual(seen);
    const newest = committed.at(-1);
    if (newest !== undefined) await mustReadBack(next, newest);
    await owner.close();
    expect((await verify(next)).problems).toEqual([]);
  }
  for (const one of committed) await mustReadBack(await Repository.open(await backendFor(2000)), one);
  // Or there was nothing to be seen.
  expect(told.committed).toBeGreaterThan(0);
  expect(told.failed).toBeGreaterThan(0);
}, 240_000);
