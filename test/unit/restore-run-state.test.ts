import { describe, expect, it } from '@jest/globals';

import type { Manifest } from '../../src/format/manifest.js';
import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import type { Repository } from '../../src/repository/repository.js';
import { restoreCheckpoint } from '../../src/restore/restore.js';

/** Whether the adapter is asked for a paused VM. */
async function asked(runState: string, call: { readonly paused?: boolean }): Promise<boolean> {
  let paused = false;
  const hypervisor: Partial<Hypervisor> = {
    name: 'fake',
    schemes: ['fake'],
    restoreOptions: {},
    planRestore: () => Promise.resolve({ commands: [], details: [], disks: [] }),
    restore: (_source, request) => {
      ({ paused } = request);
      return Promise.resolve({ vmAddress: 'fake:1', pid: 1, running: !paused, streamBytes: 0 });
    },
  };
  const repository: Partial<Repository> = {
    reader: () => ({ hypervisor: 'fake' }) as unknown as ReturnType<Repository['reader']>,
  };
  const manifest = { runState, disks: [] } as unknown as Manifest;
  await restoreCheckpoint(
    {
      repository: repository as Repository,
      hypervisors: new HypervisorRegistry([hypervisor as Hypervisor]),
      manifest,
    },
    { keepDisks: false, ...call },
  );
  return paused;
}

describe('a restored VM', () => {
  it('is paused when the checkpoint found it so, and runs otherwise', async () => {
    expect(await asked('paused', {})).toBe(true);
    expect(await asked('running', {})).toBe(false);
    // Of a file of another tool that does not say.
    expect(await asked('', {})).toBe(false);
  });

  it('is what the operator wants it to be, if they say so', async () => {
    expect(await asked('paused', { paused: false })).toBe(false);
    expect(await asked('running', { paused: true })).toBe(true);
  });
});
