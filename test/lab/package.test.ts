/**
 * The Debian package as a new user meets it: on a bare Debian 12 that has no Node.js. And the library's package, from an empty
 * project. Each is built here, and nothing of the source tree is used after that.
 */

import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { CleanRoot, whyNoCleanRoot } from './support/clean-root.js';
import { gentleLoad } from './support/guest-loads.js';
import { labCache, scratchDir, SOURCE_ROOT } from './support/lab-files.js';
import { differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

const PLAIN_ENVIRONMENT = { ...process.env, NODE_OPTIONS: '', CAIRN_CACHE: join(labCache(), '..') };
const WATCHER = 'cairn-watch@web1.service';

const reason = whyNoCleanRoot();
if (reason !== '') process.stderr.write(`test/lab/package.test.ts is skipped: ${reason}\n`);

(reason === '' ? describe : describe.skip)('the Debian package', () => {
  let dir: string;
  let deb: string;
  let root: CleanRoot;
  let machine: LabMachine;

  beforeAll(async () => {
    dir = scratchDir('package');
    const args = [join(SOURCE_ROOT, 'packaging/build-deb'), '--quick', '--out', dir];
    deb = execFileSync('bash', args, {
      encoding: 'utf8',
      env: PLAIN_ENVIRONMENT,
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
    root = new CleanRoot(join(dir, 'root'));
    mkdirSync(join(root.dir, 'run/vm'), { recursive: true });
    machine = await LabMachine.start({ name: 'packaged', memoryMib: 96, dir: join(root.dir, 'run/vm') });
    cpSync(deb, join(root.dir, 'root', basename(deb)));
  });
  afterAll(async () => machine.destroy());

  const install = (): Promise<string> => root.sh(`cd /root && apt-get install -y ./${basename(deb)} 2>&1`);

  it('is one that lintian has nothing to say of', () => {
    const said = execFileSync('lintian', ['--allow-root', deb], { encoding: 'utf8', env: PLAIN_ENVIRONMENT });
    expect(said).toBe('');
  });

  it('is installed by one command, and works by the next', async () => {
    await expect(root.sh('command -v node')).rejects.toThrow();
    await install();
    const said = JSON.parse(await root.sh('cairn doctor --json')) as Record<string, unknown>;
    expect(said).toMatchObject({ message_type: 'summary', version: '0.1.0' });
    expect(said.needed).toEqual(
      expect.arrayContaining([expect.objectContaining({ part: 'libzstd', usable: true })]),
    );
    expect((said.needed as { usable: boolean }[]).filter(({ usable }) => !usable)).toEqual([]);
    await expect(root.sh('command -v node')).rejects.toThrow();
  });

  it('brings man pages, completions and units', async () => {
    const files = (await root.sh('dpkg -L cairn')).split('\n');
    for (const file of [
      'man/man1/cairn-rewind.1.gz',
      'fish/vendor_completions.d/cairn.fish',
      'doc/cairn/operations.md',
    ])
      expect(files).toContain(`/usr/share/${file}`);
    expect(
      await root.sh('bash -c ". /usr/share/bash-completion/completions/cairn; complete -p cairn"'),
    ).toContain('_cairn_complete');
    expect(existsSync(join(root.dir, 'usr/lib/systemd/system/cairn-watch@.service'))).toBe(true);
  });

  it('takes exact checkpoints, and reads all of a repository back', async () => {
    await root.sh('cairn init --repo /srv/cairn');
    const take = async (): Promise<void> => {
      await machine.qmp.command('stop');
      const truth = await processTruth(machine);
      const said = await root.sh('cairn checkpoint qmp:/run/vm/qmp.sock --repo /srv/cairn --json');
      const { checkpoint_id } = JSON.parse(said.trim().split('\n').at(-1)!) as { checkpoint_id: string };
      expect(await differingFromStored(truth, join(root.dir, 'srv/cairn'), checkpoint_id)).toEqual([]);
      await machine.qmp.command('cont');
    };
    await take();
    await machine.guest(gentleLoad(8));
    await take();
    expect(await root.sh('cairn list --repo /srv/cairn')).toMatch(/packaged +base[^]*packaged +incremental/);
    await root.sh('cairn verify --repo /srv/cairn');
  });

  it('is upgraded between two checkpoints: watchers that run are ended before, and started after it', async () => {
    mkdirSync(join(root.dir, 'run/systemd/system'), { recursive: true });
    const systemctl = join(root.dir, 'usr/bin/systemctl');
    // In the place of a systemd: what is asked of it is written down.
    writeFileSync(
      systemctl,
      `#!/bin/sh
      [ "$1" = list-units ] && { echo "${WATCHER} loaded active running Cairn checkpoints of web1"; exit 0; }
      echo "$*" >>/root/asked\n`,
    );
    chmodSync(systemctl, 0o755);
    await root.sh(`cd /root && apt-get install -y --reinstall ./${basename(deb)} 2>&1`);
    const asked = readFileSync(join(root.dir, 'root/asked'), 'utf8').trim().split('\n');
    expect(asked).toEqual([
      `stop ${WATCHER}`,
      'daemon-reload',
      'daemon-reload',
      `start --no-block ${WATCHER}`,
    ]);
    expect(existsSync(join(root.dir, 'run/cairn-upgrade.units'))).toBe(false);
  });

  it('leaves repositories and the key of the host when it is removed', async () => {
    const key = readFileSync(join(root.dir, 'var/lib/cairn/host-key'));
    const stored = readdirSync(join(root.dir, 'srv/cairn'), { recursive: true });
    await root.sh('apt-get purge -y cairn 2>&1');
    expect(existsSync(join(root.dir, 'usr/lib/cairn'))).toBe(false);
    expect(existsSync(join(root.dir, 'usr/bin/cairn'))).toBe(false);
    expect(readFileSync(join(root.dir, 'var/lib/cairn/host-key'))).toEqual(key);
    expect(readdirSync(join(root.dir, 'srv/cairn'), { recursive: true })).toEqual(stored);
  });
});

describe('the package of the library', () => {
  it('is used from an empty project, with its types', () => {
    const dir = scratchDir('library');
    const npm = (...args: readonly string[]): string =>
      execFileSync('npm', args, {
        cwd: dir,
        encoding: 'utf8',
        env: PLAIN_ENVIRONMENT,
        stdio: ['ignore', 'pipe', 'inherit'],
      });
    const archive = npm('pack', '--silent', '--ignore-scripts', SOURCE_ROOT).trim();
    writeFileSync(join(dir, 'package.json'), '{ "name": "empty", "version": "1.0.0", "type": "module" }');
    npm(
      'install',
      '--silent',
      '--ignore-scripts',
      '--no-audit',
      '--no-fund',
      '--prefer-offline',
      `./${archive}`,
    );
    writeFileSync(
      join(dir, 'index.ts'),
      `import { CheckpointError, hypervisors, openBackend, Repository, type CheckpointSummary } from 'cairn';
      const repository: Repository = await Repository.init(openBackend('repo'));
      const pauseMs = (summary: CheckpointSummary): number => summary.pauseMs;
      try {
        await hypervisors().forAddress('qmp:/none.qmp').attach('qmp:/none.qmp', { runtimeDir: 'runtime' });
      } catch (error) {
        if (!(error instanceof CheckpointError)) throw error;
        console.log(error.code, typeof pauseMs, repository.id.length);
      }`,
    );
    const tsc = join(SOURCE_ROOT, 'node_modules/typescript/bin/tsc');
    const strict = [
      '--strict',
      '--module',
      'nodenext',
      '--target',
      'es2022',
      '--typeRoots',
      join(SOURCE_ROOT, 'node_modules/@types'),
    ];
    execFileSync(process.execPath, [tsc, ...strict, '--types', 'node', 'index.ts'], {
      cwd: dir,
      stdio: 'inherit',
      env: PLAIN_ENVIRONMENT,
    });
    const said = execFileSync(process.execPath, ['index.js'], {
      cwd: dir,
      encoding: 'utf8',
      env: PLAIN_ENVIRONMENT,
    });
    expect(said).toMatch(/^VM_UNREACHABLE function \d+$/m);
    expect(
      execFileSync(join(dir, 'node_modules/.bin/cairn'), ['--version'], {
        encoding: 'utf8',
        env: PLAIN_ENVIRONMENT,
      }),
    ).toBe('0.1.0\n');
  });
});
