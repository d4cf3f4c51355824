import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { bashCompletion } from '../../src/cli/completion/bash.js';
import { fishCompletion } from '../../src/cli/completion/fish.js';
import { wordsOf, type CommandWords } from '../../src/cli/completion/words.js';
import { zshCompletion } from '../../src/cli/completion/zsh.js';
import { allCommands } from '../../src/cli/program.js';
import { runningDomains } from '../../adapters/libvirt/running.js';
import { Repository } from '../../src/repository/repository.js';
import { openBackend } from '../../src/storage/open.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';

const MAN_PAGES = fileURLToPath(new URL('../../../packaging/man-pages.mjs', import.meta.url));
const REPOSITORY = fileURLToPath(new URL('../../../test/golden/repository-v1/repo', import.meta.url));
const PLAIN_ENVIRONMENT = { ...process.env, NODE_OPTIONS: '', CAIRN_REPOSITORY: '' };

let dir: string;
let commands: readonly CommandWords[];

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-completion-test-'));
  commands = (await allCommands()).map(wordsOf);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** The options of a command that a script does not have in what it says of that command. */
function missingOptions(part: (command: CommandWords) => string, spelled = (flag: string) => flag): string[] {
  return commands.flatMap((command) => {
    const text = part(command);
    return command.options
      .flatMap(({ flags }) => flags)
      .filter((flag) => !text.includes(spelled(flag)))
      .map((flag) => `${command.name} ${flag}`);
  });
}

/** What stands between two marks. */
function between(text: string, from: string, to: string): string {
  const start = text.indexOf(from);
  return start < 0 ? '' : text.slice(start, text.indexOf(to, start));
}

describe('what can be typed', () => {
  it('is known of all arguments', () => {
    const unknown = commands.flatMap(({ name, arguments: all }) =>
      all.filter(({ kind }) => kind === 'other').map((argument) => `${name} ${argument.name}`),
    );
    expect(unknown).toEqual([]);
  });
});

describe('each command with each of its options', () => {
  it('is in the completion of bash', () => {
    const script = bashCompletion(commands);
    expect(missingOptions(({ name }) => between(script, `    ${name})\n`, ';;'))).toEqual([]);
  });

  it('is in the completion of zsh', () => {
    const script = zshCompletion(commands);
    expect(missingOptions(({ name }) => between(script, `        ${name})\n`, ';;'))).toEqual([]);
  });

  it('is in the completion of fish', () => {
    const lines = fishCompletion(commands).split('\n');
    const linesOf = ({ name }: CommandWords): string =>
      lines.filter((line) => line.includes(`'__cairn_is ${name}'`)).join('\n');
    const spelled = (flag: string): string =>
      flag.startsWith('--') ? ` -l ${flag.slice(2)} ` : ` -s ${flag.slice(1)} `;
    expect(missingOptions(linesOf, spelled)).toEqual([]);
    expect(commands.filter(({ name }) => !lines.some((line) => line.includes(` -a ${name} `)))).toEqual([]);
  });

  it('is in the man pages', () => {
    execFileSync(process.execPath, [MAN_PAGES, dir], { env: PLAIN_ENVIRONMENT });
    const page = (name: string): string => readFileSync(join(dir, name), 'utf8').replaceAll('\\-', '-');
    expect(
      missingOptions(
        ({ name }) => page(`cairn-${name}.1`),
        (flag) => flag,
      ),
    ).toEqual([]);
    const overview = page('cairn.1');
    expect(commands.filter(({ name }) => !overview.includes(`cairn-${name}`))).toEqual([]);
    expect(page('cairn-rewind.1')).toContain('.SH EXAMPLES\n');
    expect(page('cairn-key.1')).toContain('.SS "cairn key rotate"\n');
    expect(overview).toContain('\\fB27\\fR\npause ended before its time');
  });
});

describe('a real bash', () => {
  beforeAll(() => {
    writeFileSync(join(dir, 'cairn'), `#!/bin/sh\nexec ${process.execPath} ${CAIRN_MAIN} "$@"\n`);
    chmodSync(join(dir, 'cairn'), 0o755);
    writeFileSync(join(dir, 'completion'), bashCompletion(commands));
    writeFileSync(join(dir, 'web1.qmp'), '');
  });

  /** What is offered at the end of a line. */
  function offered(line: string, repository = ''): readonly string[] {
    // Only readline itself may call compopt.
    const script = `
      PATH=${dir}:$PATH
      COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
      source ${join(dir, 'completion')}
      compopt() { :; }
      COMP_LINE=$1 COMP_POINT=\${#1}
      _cairn_complete
      printf '%s\\n' "\${COMPREPLY[@]}"`;
    const text = execFileSync('bash', ['-c', script, 'bash', line], {
      encoding: 'utf8',
      env: { ...PLAIN_ENVIRONMENT, CAIRN_REPOSITORY: repository },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    return text.split('\n').filter((word) => word !== '');
  }

  it('completes commands and options', () => {
    expect(offered('cairn rew')).toEqual(['rewind']);
    expect(offered('cairn watch --keep-w')).toEqual(['--keep-weekly', '--keep-within']);
    expect(offered('cairn nothing --')).toEqual([]);
  });

  it('completes values that are choices, behind a blank and behind =', () => {
    expect(offered('cairn watch --disks in')).toEqual(['internal']);
    expect(offered('cairn watch --disks=in')).toEqual(['internal']);
    expect(offered('cairn completion ')).toEqual(['bash', 'zsh', 'fish']);
    expect(offered('cairn key ')).toEqual(['list', 'add', 'remove', 'rotate']);
  });

  it('completes the ids of checkpoints, in the place where they belong', async () => {
    const ids = (await (await Repository.open(openBackend(REPOSITORY))).checkpoints()).manifests.map(
      ({ id }) => id,
    );
    expect(ids.length).toBeGreaterThan(1);
    expect(offered(`cairn show --repo ${REPOSITORY} `)).toEqual(['latest', ...ids]);
    expect(offered(`cairn rewind qmp:/run/web1.qmp --paused ${ids[0]!.slice(0, 6)}`, REPOSITORY)).toEqual([
      ids[0],
    ]);
    expect(offered(`cairn show ${ids[0]} `, REPOSITORY)).toEqual([]);
    expect(offered(`cairn forget ${ids[0]} ${ids[1]!.slice(0, 6)}`, REPOSITORY)).toEqual([ids[1]]);
  });

  it('completes names of chains', () => {
    expect(offered('cairn unlock ', REPOSITORY).length).toBeGreaterThan(0);
  });

  it('completes paths of sockets behind the colon of an address', () => {
    expect(offered(`cairn doctor qmp:${dir}/we`)).toEqual([`${dir}/web1.qmp`]);
  });

  it('offers nothing where there is no repository', () => {
    expect(offered('cairn show ', join(dir, 'none'))).toEqual([]);
  });
});

describe('domains of libvirt that run', () => {
  it('are those of which libvirt keeps the process', async () => {
    for (const name of ['driver.pid', 'web1.pid', 'web1.xml', 'db.2.pid']) writeFileSync(join(dir, name), '');
    expect((await runningDomains(dir)).map(({ address }) => address).sort()).toEqual([
      'libvirt:db.2',
      'libvirt:web1',
    ]);
  });
});
