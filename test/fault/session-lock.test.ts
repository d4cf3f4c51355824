/** A session whose lock of the chain is taken away by force: the guest is not paused for nothing, and the session takes the chain again when it may. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession, SessionOptions } from '../../src/checkpoint/session.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { FileBackend } from '../../src/storage/file.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { CAPTURES } from '../support/captures.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor } from '../support/fake-vm.js';
import { readBack } from '../unit/repository-model.js';

let dir = '';
let guest: FakeGuest;
let repository: Repository;
let session: CheckpointSession;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-session-lock-'));
  guest = new FakeGuest();
  repository = await Repository.init(new FileBackend(join(dir, 'repo')));
});
afterEach(async () => {
  await session.close();
  guest.dispose();
  rmSync(dir, { recursive: true });
});

async function open(tracker: string, options: Partial<SessionOptions> = {}): Promise<void> {
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest])]),
    `fake:${guest.identity.name}`,
    { repository, runtimeDir: join(dir, 'run'), workers: 1, tracker, ...options },
  );
  guest.write(1, new Uint8Array(PAGE_SIZE_BYTES).fill(7), 0);
}

/** A hook that removes the lock in this phase, once, when the file `now` is there. */
function unlockIn(phase: string): string {
  const now = join(dir, 'now');
  return `[ "$CAIRN_PHASE" != ${phase} ] || ! [ -e '${now}' ] || rm '${now}' '${join(dir, 'repo')}'/vms/*/locks/*`;
}

function pauses(): number {
  return guest.calls.filter((call) => call === 'pause').length;
}

async function mustBeAsTheGuest(checkpointId: string): Promise<void> {
  const { memory } = await readBack(repository, await repository.find(checkpointId));
  const expected = guest.snapshot();
  expect(Buffer.compare(memory.subarray(0, expected.length), expected)).toBe(0);
  expect((await verify(repository)).problems).toEqual([]);
}

describe.each(CAPTURES)('a session that has lost its lock, $capture', ({ tracker }) => {
  it('pauses nothing while somebody else has the chain, and goes on when that one is done', async () => {
    await open(tracker);
    await session.checkpoint();
    const name = session.vmName;
    await repository.unlock(name, { force: true });
    const other = await repository.openChainWriter(name, guest.identity);
    const before = pauses();
    for (let n = 0; n < 2; n++) {
      guest.write(2 + n, Uint8Array.of(n + 1), 9);
      await expect(session.checkpoint()).rejects.toMatchObject({
        code: 'REPO_LOCKED',
        message: expect.stringContaining(`process ${process.pid}`),
      });
    }
    expect(pauses()).toBe(before);
    expect(guest.state).toBe('running');
    await other.close();
    const { checkpointId, warnings, compareReason } = await session.checkpoint();
    expect(warnings).toContainEqual(expect.stringContaining('taken again'));
    // Nothing was harvested meanwhile, and the newest checkpoint is the one that the tracker counts from.
    expect(compareReason).toBe('');
    await mustBeAsTheGuest(checkpointId);
    expect((await session.checkpoint()).warnings).toEqual([]);
  });

  it('compares all pages when the newest checkpoint is another one then', async () => {
    await open(tracker);
    await session.checkpoint();
    guest.write(3, Uint8Array.of(5), 9);
    const { checkpointId: newest } = await session.checkpoint();
    await repository.unlock(session.vmName, { force: true });
    rmSync(join(dir, 'repo', 'vms', session.vmName, 'checkpoints', `00000002-${newest}`));
    const { checkpointId, compareReason } = await session.checkpoint();
    expect(compareReason).not.toBe('');
    await mustBeAsTheGuest(checkpointId);
  });

  it('that goes before the pause does not pause for nothing; what was harvested is not lost', async () => {
    await open(tracker, { hook: unlockIn('before-pause') });
    await session.checkpoint();
    guest.write(4, Uint8Array.of(8), 100);
    const before = pauses();
    writeFileSync(join(dir, 'now'), '');
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'REPO_LOCKED', detail: { lost: true } });
    expect(pauses()).toBe(before);
    const { checkpointId } = await session.checkpoint();
    await mustBeAsTheGuest(checkpointId);
  });

  it('that goes in the pause does not commit, and leaves the guest running', async () => {
    await open(tracker, { hook: unlockIn('paused') });
    const { checkpointId: first } = await session.checkpoint();
    guest.write(4, Uint8Array.of(8), 100);
    writeFileSync(join(dir, 'now'), '');
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    expect(guest.state).toBe('running');
    expect((await repository.checkpoints()).manifests.map(({ id }) => id)).toEqual([first]);
    const { checkpointId } = await session.checkpoint();
    await mustBeAsTheGuest(checkpointId);
  });
});
