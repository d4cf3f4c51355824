/**
 * Words behind `cairn`: every command takes its options apart, and what comes of them is within what the engine takes. No
 * command is carried out.
 */

import { CommanderError, type Command } from 'commander';

import { analyzeCommand } from '../../../src/cli/commands/analyze.js';
import { checkpointCommand } from '../../../src/cli/commands/checkpoint.js';
import { diffCommand } from '../../../src/cli/commands/diff.js';
import { doctorCommand } from '../../../src/cli/commands/doctor.js';
import { exportCommand } from '../../../src/cli/commands/export.js';
import { forgetCommand, pruneCommand } from '../../../src/cli/commands/forget.js';
import { importCommand } from '../../../src/cli/commands/import.js';
import { initCommand } from '../../../src/cli/commands/init.js';
import { listCommand } from '../../../src/cli/commands/list.js';
import { receiveCommand } from '../../../src/cli/commands/receive.js';
import { restoreCommand } from '../../../src/cli/commands/restore.js';
import { showCommand } from '../../../src/cli/commands/show.js';
import { unlockCommand } from '../../../src/cli/commands/unlock.js';
import { verifyCommand } from '../../../src/cli/commands/verify.js';
import { watchCommand } from '../../../src/cli/commands/watch.js';
import { keepPolicyOf } from '../../../src/cli/keep-options.js';
import { restoreSettingsOf } from '../../../src/cli/restore-settings.js';
import { sessionSettings, type SessionCliOptions } from '../../../src/cli/session-options.js';
import { CheckpointError } from '../../../src/errors.js';
import { hypervisors } from '../../../src/index.js';
import { before } from '../../../src/repository/forget/calendar.js';
import { mutateJson } from '../mutate-json.js';
import { must, type OpenTarget } from '../target.js';

const COMMANDS: readonly (() => Command)[] = [
  ...[initCommand, checkpointCommand, watchCommand, listCommand, showCommand, diffCommand, analyzeCommand],
  ...[
    verifyCommand,
    forgetCommand,
    pruneCommand,
    restoreCommand,
    exportCommand,
    importCommand,
    receiveCommand,
  ],
  ...[doctorCommand, unlockCommand],
];

const LINES: readonly (readonly string[])[] = [
  [
    'checkpoint',
    'qmp:/run/a',
    '--repo',
    '/r',
    '--cache',
    '256',
    '--workers',
    '2',
    '--compression',
    '3',
    '--max-pause',
    '10',
  ],
  [
    'checkpoint',
    'qmp:/run/a',
    '--freeze',
    '5',
    '--wait-job',
    '30',
    '--disks',
    'auto',
    '--hook',
    'true',
    '--json',
  ],
  [
    'watch',
    'qmp:/run/a',
    '--interval',
    '60',
    '--count',
    '3',
    '--keep-last',
    '5',
    '--keep-within',
    '1y6m3d4h',
  ],
  [
    'forget',
    '--name',
    'web1',
    '--keep-daily',
    '7',
    '--keep-weekly',
    '4',
    '--keep-monthly',
    '12',
    '--dry-run',
  ],
  [
    'restore',
    'latest',
    '--qmp',
    '/q',
    '--set-arg',
    '-name=a',
    '--drop-arg',
    '-vnc',
    '--paused',
    '--keep-disks',
  ],
  ['import', 'a.mig', '--format', 'qemu', '--name', 'web1', '--temp', '/t'],
  ['receive', '--format', 'xl', '--count', '3', '--compression', '3'],
  ['export', 'latest', 'file', '--format', 'qemu'],
  ['analyze', 'qmp:/run/a', '--epoch', '0.5', '--per-day', '3'],
  ['list', '--name', 'web1'],
  ['verify', '--json'],
];
const MAX_TIMER_MS = 2 ** 31 - 1;
const MAX_LEVEL = 22;

export const openTarget: OpenTarget = () => {
  const known = new Map(COMMANDS.map((make) => [make().name(), make] as const));
  return Promise.resolve({
    seeds: LINES.map((line) => Buffer.from(JSON.stringify(line))),
    mutate: mutateJson,
    run: (input) => {
      const [name, ...words] = wordsIn(input);
      const make = known.get(name ?? '');
      if (make === undefined) return Promise.resolve('no command');
      const command = make().configureOutput({ writeOut: () => undefined, writeErr: () => undefined });
      command.action(() => undefined);
      try {
        command.parse(words, { from: 'user' });
      } catch (error) {
        // `main` makes a usage error of it.
        if (!(error instanceof CommanderError)) throw error;
        throw new CheckpointError('USAGE', error.code);
      }
      mustFit(command.opts());
      return Promise.resolve(`${name ?? ''} ${Object.keys(command.opts()).length}`);
    },
  });
};

function mustFit(options: Readonly<Record<string, unknown>>): void {
  const keep = keepPolicyOf(options);
  if (keep?.within !== undefined)
    must(Number.isFinite(before(Date.now(), keep.within)), `a moment before ${keep.within.text}`);
  restoreSettingsOf(options, hypervisors().all);
  const session = sessionSettings(options as unknown as SessionCliOptions);
  for (const [name, ms] of [
    ['freezeLimitMs', session.freezeLimitMs],
    ['waitJobMs', session.attach?.waitJobMs],
  ] as const)
    must(ms === undefined || ms <= MAX_TIMER_MS, `${name} that a timer can wait for, not ${ms ?? ''}`);
  const level = session.compressionLevel;
  must(level === undefined || level <= MAX_LEVEL, `a compression level that zstd has, not ${level ?? ''}`);
  must(Number.isSafeInteger(session.cacheBytes ?? 0), 'a cache of whole bytes');
}

function wordsIn(input: Uint8Array): readonly string[] {
  try {
    const read = JSON.parse(Buffer.from(input).toString('utf8')) as unknown;
    return Array.isArray(read) ? read.filter((word): word is string => typeof word === 'string') : [];
  } catch {
    return [];
  }
}
