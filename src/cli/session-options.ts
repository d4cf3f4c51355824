/** Options of the commands that take checkpoints. */

import { type Command, Option } from 'commander';

import { DEFAULT_MAX_PAUSE_MS } from '../checkpoint/session.js';
import type { OpenSessionOptions } from '../checkpoint/open-session.js';
import { AUTO_DISK_MODE, type DiskMode } from '../disks/disk-plan.js';
import { CheckpointError } from '../errors.js';
import type { DiskDriverOptions } from '../hypervisor/hypervisor.js';
import { diskDriverKinds } from '../index.js';
import type { SharedOptions } from './command.js';
import {
  compressionLevel,
  duration,
  positiveNumber,
  secondsForTimer,
  wholeNumber,
  workerCount,
} from './parse.js';

/** Beside these, the settings of the disk drivers: see `diskOptionsOf`. */
export interface SessionCliOptions extends SharedOptions {
  readonly name?: string;
  readonly tracker: string;
  readonly maxPause?: number;
  readonly pauseLimit?: number;
  readonly cache?: number;
  readonly workers?: number;
  readonly compression?: number;
  readonly memoryOnly?: boolean;
  readonly disks: DiskMode;
  readonly hook?: string;
  readonly waitJob?: number;
  readonly freeze?: true | number;
  readonly guestAgent?: string;
  readonly allowChangedMachine?: boolean;
}

/**
 * An agent that has to write out much of a page cache takes its time; a guest whose disk hangs must not be
 * waited for for ever.
 */
const FREEZE_LIMIT_S = 10;
/** 2^53 bytes, which a number counts exactly. */
const MAX_CACHE_MIB = 2 ** 33;

export function addSessionOptions(to: Command): Command {
  const withVm = to
    .option(
      '--name <name>',
      "name of the VM's chain in the repository (default: the VM's name, else its UUID)",
    )
    .option('--tracker <kind>', 'dirty tracker: auto, or a kind that doctor lists', 'auto')
    .option(
      '--max-pause <ms>',
      'pause to aim for: more is copied while the VM runs (default: 10)',
      positiveNumber,
    )
    .option(
      '--pause-limit <duration>',
      'end the pause and fail the checkpoint after this time, such as 5s (default: 10s more than --max-pause, and what hook, disk snapshots or copying all memory may take)',
      duration,
    )
    .option(
      '--cache <MiB>',
      'memory for previous versions of pages (default: 256)',
      wholeNumber(0, MAX_CACHE_MIB),
    )
    .option('--workers <n>', 'threads that copy and encode (default: one a core, at most 4)', workerCount)
    .option('--compression <level>', 'zstd level, 0 = off (default: 3)', compressionLevel)
    .option(
      '--memory-only',
      'leave the disks alone: a restore is only right with disks put back to the same instant',
    );
  return addDiskOptions(withVm)
    .option(
      '--wait-job <seconds>',
      'of a libvirt domain: wait that long for a running job (save, migration, backup) instead of refusing',
      secondsForTimer,
    )
    .option(
      '--freeze [seconds]',
      `have the agent in the guest freeze its file systems for the pause, within this time (default: ${FREEZE_LIMIT_S})`,
      secondsForTimer,
    )
    .option(
      '--guest-agent <path>',
      "socket of the guest's agent (default: the one of QEMU's command line; of a libvirt domain, libvirt's)",
    )
    .option(
      '--allow-changed-machine',
      'of a QEMU: take it also when devices were plugged or unplugged since its start; it is restored with --to, or with --set-arg for what came',
    )
    .option('--hook <command>', 'shell command run around the pause, see docs/operations.md');
}

/** `--disks`, and the settings of each driver. */
function addDiskOptions(to: Command): Command {
  const kinds = diskDriverKinds();
  const byStorage = kinds.filter(({ takenBy }) => takenBy === 'storage').map(({ name }) => name);
  to.addOption(
    new Option(
      '--disks <mode>',
      'driver that snapshots all disks that it can in the pause; the others go to the first that can, ' +
        `beside a --hook not to one of the storage (${byStorage.join(', ')})`,
    )
      .choices([AUTO_DISK_MODE, ...kinds.map(({ name }) => name)])
      .default(AUTO_DISK_MODE),
  );
  for (const { flags, description } of kinds.flatMap(({ settings = [] }) => settings))
    to.option(flags, description);
  return to;
}

/** Settings that were given, for the driver that they belong to. */
export function diskOptionsOf(options: object): DiskDriverOptions {
  const given = options as Readonly<Record<string, unknown>>;
  return Object.fromEntries(
    diskDriverKinds().map(({ name, settings = [] }) => [
      name,
      Object.fromEntries(
        settings.flatMap(({ flags, key }) => {
          const value = given[new Option(flags).attributeName()];
          return typeof value === 'string' ? [[key, value]] : [];
        }),
      ),
    ]),
  );
}

export function sessionSettings(
  options: SessionCliOptions,
): Omit<OpenSessionOptions, 'repository' | 'signal'> {
  return {
    name: options.name,
    tracker: options.tracker,
    maxPauseMs: options.maxPause,
    pauseLimitMs: pauseLimitMs(options),
    cacheBytes: options.cache === undefined ? undefined : options.cache * 2 ** 20,
    workers: options.workers,
    compressionLevel: options.compression,
    memoryOnly: options.memoryOnly,
    diskMode: options.disks,
    hook: options.hook,
    freezeLimitMs: freezeLimitMs(options.freeze),
    attach: {
      waitJobMs: options.waitJob === undefined ? undefined : options.waitJob * 1000,
      guestAgent: options.guestAgent,
      diskOptions: diskOptionsOf(options),
      allowChangedMachine: options.allowChangedMachine,
    },
  };
}

/** @throws USAGE for one that no pause would keep to */
function pauseLimitMs({
  pauseLimit,
  maxPause = DEFAULT_MAX_PAUSE_MS,
}: SessionCliOptions): number | undefined {
  if (pauseLimit === undefined || pauseLimit > maxPause) return pauseLimit;
  throw new CheckpointError('USAGE', '--pause-limit has to be longer than --max-pause', {
    hint: 'the one ends a pause that hangs, the other is what a pause should take',
  });
}

function freezeLimitMs(freeze: true | number | undefined): number | undefined {
  if (freeze === undefined) return undefined;
  return (freeze === true ? FREEZE_LIMIT_S : freeze) * 1000;
}
