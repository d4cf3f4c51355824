import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Writable } from 'node:stream';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { type Hypervisor } from '../../src/hypervisor/hypervisor.js';
import type { Manifest } from '../../src/format/manifest.js';
import type { Repository } from '../../src/repository/repository.js';
import { exportCheckpoint } from '../../src/restore/restore.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-export-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

/** An export whose stream `write` makes. */
function exporting(write: (sink: Writable) => Promise<void>, path: string): Promise<number> {
  const hypervisor: Partial<Hypervisor> = {
    name: 'fake',
    schemes: ['fake'],
    exportFormats: ['raw'],
    exportTo: async (_source, _format, sink) => {
      await write(sink);
      return 3;
    },
  };
  const hypervisors = new HypervisorRegistry([hypervisor as Hypervisor]);
  const repository: Partial<Repository> = {
    reader: () => ({ hypervisor: 'fake' }) as unknown as ReturnType<Repository['reader']>,
  };
  return exportCheckpoint(
    { repository: repository as Repository, hypervisors, manifest: {} as Manifest },
    { format: 'raw', path },
  );
}

async function writeAll(sink: Writable): Promise<void> {
  await new Promise((resolve) => sink.write('abc', resolve));
}

describe('an export', () => {
  it('creates a file that only its owner may read', async () => {
    const path = join(dir, 'out');
    expect(await exporting(writeAll, path)).toBe(3);
    expect(readFileSync(path, 'utf8')).toBe('abc');
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it('leaves a file that is there as it is', async () => {
    const path = join(dir, 'out');
    writeFileSync(path, 'precious');
    await expect(exporting(writeAll, path)).rejects.toMatchObject({ code: 'EXPORT_EXISTS' });
    expect(readFileSync(path, 'utf8')).toBe('precious');
  });

  it('has its name from the start: whoever comes second is refused and takes nothing away', async () => {
    const path = join(dir, 'out');
    const first = exporting(async (sink) => {
      await expect(exporting(writeAll, path)).rejects.toMatchObject({ code: 'EXPORT_EXISTS' });
      await writeAll(sink);
    }, path);
    await first;
    expect(readFileSync(path, 'utf8')).toBe('abc');
  });

  it.each([
    ['ENOSPC', 'STORAGE_FULL'],
    ['EDQUOT', 'STORAGE_FULL'],
    ['EIO', 'STORAGE_IO'],
  ])('leaves no file when writing it fails with %s', async (errno, code) => {
    const path = join(dir, 'out');
    const failing = exporting((sink) => {
      const error = Object.assign(new Error(`${errno}: write`), { code: errno });
      sink.destroy(error);
      return Promise.reject(error);
    }, path);
    await expect(failing).rejects.toMatchObject({ code });
    expect(existsSync(path)).toBe(false);
  });

  it('into a folder that is not there is a usage error', async () => {
    await expect(exporting(writeAll, join(dir, 'none/out'))).rejects.toMatchObject({ code: 'USAGE' });
  });
});
