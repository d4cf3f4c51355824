import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { MemoryWatch } from '../../adapters/xen/remus/memory-watch.js';

const MODULE = new URL('../../adapters/xen/remus/memory-watch.js', import.meta.url).href;
const UUID = '01234567-89ab-cdef-0123-456789abcdef';
const MAX_KIB = 128 * 1024;
const PAGES = 32768;

function config(videoKib: number) {
  return { c_info: { name: 'web1', uuid: UUID }, b_info: { max_memkb: MAX_KIB, video_memkb: videoKib } };
}

function watch(videoKib: number, ...targetsKib: readonly number[]): MemoryWatch {
  const left = [...targetsKib];
  return new MemoryWatch(config(videoKib), () =>
    Promise.resolve({ targetKib: left.shift()!, staticMaxKib: MAX_KIB, currentMib: 128 }),
  );
}

describe('watching the memory of a guest of xl remus', () => {
  const refusal = { code: 'VM_UNSUPPORTED', detail: { hazard: 'XEN_BALLOON' } };

  it('counts the memory of a graphics card, which the target leaves out', async () => {
    await watch(8192, MAX_KIB - 8192).check(PAGES);
    await expect(watch(0, MAX_KIB - 8192).check(PAGES)).rejects.toMatchObject(refusal);
  });

  it('refuses a target that is another than at the start, and takes it when it is back', async () => {
    const watched = watch(0, MAX_KIB, MAX_KIB - 4, MAX_KIB);
    await watched.check(PAGES);
    await expect(watched.check(PAGES)).rejects.toMatchObject(refusal);
    await watched.check(PAGES);
  });

  describe('by xl and xenstore-read', () => {
    let dir: string;

    beforeEach(() => {
      dir = mkdtempSync(join(tmpdir(), 'cairn-memory-watch-'));
    });
    afterEach(() => {
      rmSync(dir, { recursive: true, force: true });
    });

    /** In a process of its own: programs are looked for in the PATH that a process was started with. */
    function read(name: string): unknown {
      const script = `
        import { readDomainMemory } from ${JSON.stringify(MODULE)};
        const found = await readDomainMemory(${JSON.stringify(name)}, '${UUID}').catch(({ code }) => code);
        process.stdout.write(JSON.stringify(found));`;
      const env = { ...process.env, NODE_OPTIONS: '', PATH: `${dir}${delimiter}${process.env.PATH ?? ''}` };
      const args = ['--input-type=module', '-e', script];
      return JSON.parse(execFileSync(process.execPath, args, { env, encoding: 'utf8' })) as unknown;
    }

    function program(name: string, script: string): void {
      writeFileSync(join(dir, name), `#!/bin/sh\n${script}\n`);
      chmodSync(join(dir, name), 0o755);
    }

    function programs(row: string, vm = `/vm/${UUID}`): void {
      const head = 'Name ID Mem VCPUs State Time(s)';
      program('xl', `case "$1" in domid) echo 7 ;; list) echo '${head}'; echo '${row}' ;; esac`);
      program(
        'xenstore-read',
        `case "$1" in */7/memory/target) echo 126976 ;; */7/memory/static-max) echo ${MAX_KIB} ;; */7/vm) echo ${vm} ;; esac`,
      );
    }

    it('reads the figures, also of a guest whose name has spaces', () => {
      programs('my web server 1   7   127     2     -b----       3.1');
      const figures = { targetKib: 126976, staticMaxKib: MAX_KIB, currentMib: 127 };
      expect(read('my web server 1')).toEqual(figures);
    });

    it('does not take another domain of the same name for it', () => {
      programs('web1   7   127     2     -b----       3.1', '/vm/ffffffff-0000-0000-0000-000000000000');
      expect(read('web1')).toBe('VM_UNREACHABLE');
    });

    it('does not take what it cannot read for a figure', () => {
      programs('nothing of that kind');
      expect(read('web1')).toBe('FFI_FAILED');
    });
  });
});
