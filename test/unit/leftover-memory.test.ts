import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { makeWorkFolder, sweepWorkFolders } from '../../src/host/work-folder.js';

const source = (path: string): string => fileURLToPath(new URL(`../../src/${path}`, import.meta.url));

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-left-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

/** Runs statements as a module in a process of its own. */
function script(statements: string): string[] {
  return ['--input-type=module', '-e', statements];
}

describe('unpacked guest memory of a Cairn that was killed', () => {
  it('is removed by the next one, and that of a living one is not', async () => {
    const make = `import { makeWorkFolder } from '${source('host/work-folder.js')}';
      import { writeFileSync } from 'node:fs';
      const folder = await makeWorkFolder('${dir}', 'import');
      writeFileSync(folder + '/memory', 'guest');
      console.log(folder); setInterval(() => undefined, 1000);`;
    const child = spawn(process.execPath, script(make), { env: { ...process.env, NODE_OPTIONS: '' } });
    const [folder] = (await once(child.stdout.setEncoding('utf8'), 'data')) as [string];
    await sweepWorkFolders(dir);
    expect(existsSync(join(folder.trim(), 'memory'))).toBe(true);
    child.kill('SIGKILL');
    await once(child, 'exit');
    const own = await makeWorkFolder(dir, 'receive');
    expect(readdirSync(dir)).toEqual([basename(own)]);
  });

  it('of an earlier boot goes; of another host, another container, another form or another user it stays', async () => {
    const own = basename(await makeWorkFolder(dir, 'import'));
    const [, kind, , , host, boot, namespace] = own.split('-');
    const named = (...parts: (string | undefined)[]): string => ['cairn', kind, ...parts, 'abcdef'].join('-');
    const gone = [named('1', '1', host, '00000000', namespace), named('1', '1', host, boot, namespace)];
    const stay = [
      named('1', '1', '00000000', boot, namespace),
      named('1', '1', host, boot, '7'),
      'cairn-import-abcdef',
      `x${gone[0]!}`,
      own,
    ];
    for (const name of [...gone, ...stay]) mkdirSync(join(dir, name), { recursive: true });
    const foreign = named('2', '2', host, boot, namespace);
    if (process.getuid?.() === 0) {
      mkdirSync(join(dir, foreign));
      lchownSync(join(dir, foreign), 65_534, 65_534);
      stay.push(foreign);
    }
    await sweepWorkFolders(dir);
    expect(readdirSync(dir).sort()).toEqual(stay.sort());
  });
});

describe('a core dump', () => {
  /** Crashes with a secret in its memory, where core dumps are allowed. @returns the dump, if there is one */
  function crash(before: string): Buffer | undefined {
    const statements = `${before}
      const secret = Buffer.from([...'yromem tseug'].reverse().join('').repeat(1000));
      process.title = 'x'; globalThis.kept = secret; process.abort();`;
    const home = mkdtempSync(join(dir, 'crash-'));
    const limited = ['-c', 'ulimit -c unlimited; exec "$0" "$@"', process.execPath, ...script(statements)];
    const { signal, status } = spawnSync('/bin/sh', limited, {
      cwd: home,
      env: { PATH: process.env.PATH ?? '' },
    });
    expect(signal ?? status).toBe('SIGABRT');
    const [core] = readdirSync(home);
    return core === undefined ? undefined : readFileSync(join(home, renamed(home, core)));
  }
  function renamed(home: string, core: string): string {
    renameSync(join(home, core), join(home, 'dump'));
    return 'dump';
  }
  const pattern = readFileSync('/proc/sys/kernel/core_pattern', 'latin1').trim();
  const isSeen = /^[^|/]/.test(pattern);
  const protect = `import { keepOutOfCoreDumps } from '${source('ffi/core-dumps.js')}'; keepOutOfCoreDumps();`;

  (isSeen ? it : it.skip)('of a process that crashes has its memory, and of a Cairn there is none', () => {
    expect(crash('')?.includes('guest memory'.repeat(3))).toBe(true);
    expect(crash(protect)).toBeUndefined();
  });

  it('is off for a process, and on again for what it starts', () => {
    const ask = `${protect}
      import { isInCoreDumps } from '${source('ffi/core-dumps.js')}';
      import { spawnSync } from 'node:child_process';
      const child = "import { isInCoreDumps } from '${source('ffi/core-dumps.js')}'; console.log(isInCoreDumps())";
      console.log(isInCoreDumps(), spawnSync(process.execPath, ['--input-type=module', '-e', child], { encoding: 'utf8' }).stdout);`;
    const { stdout } = spawnSync(process.execPath, script(ask), {
      encoding: 'utf8',
      env: { PATH: process.env.PATH ?? '' },
    });
    expect(stdout.trim()).toBe('false true');
  });

  (process.getuid?.() === 0 ? it : it.skip)(
    'is off for an unprivileged process, whose page map opens all the same',
    () => {
      // Modules below a home folder are out of reach for another user, so ids are given up after they are loaded.
      const ask = `import { isInCoreDumps, keepOutOfCoreDumps, openOwnPagemap } from '${source('ffi/core-dumps.js')}';
      keepOutOfCoreDumps(); isInCoreDumps();
      process.setgroups([]); process.setgid(65534); process.setuid(65534); keepOutOfCoreDumps();
      const before = isInCoreDumps();
      console.log(before, openOwnPagemap() > 0, isInCoreDumps());`;
      const { stdout, stderr } = spawnSync(process.execPath, script(ask), {
        encoding: 'utf8',
        env: { PATH: process.env.PATH ?? '' },
      });
      expect([stdout.trim(), stderr]).toEqual(['false true false', '']);
    },
  );
});
