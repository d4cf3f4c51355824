/** Options of the commands that take checkpoints. */

import { type Command, Option } from 'commander';

import type { SessionOptions } from '../checkpoint/session.js';
import type { DiskMode } from '../disks/disk-plan.js';
import type { SharedOptions } from './command.js';
import { positiveNumber, wholeNumber } from './parse.js';

export interface SessionCliOptions extends SharedOptions {
  readonly name?: string;
  readonly tracker: string;
  readonly maxPause?: number;
  readonly cache?: number;
  readonly workers?: number;
  readonly compression?: number;
  readonly memoryOnly?: boolean;
  readonly disks: DiskMode;
  readonly lvmSize?: string;
  readonly hook?: string;
  readonly waitJob?: number;
  readonly freeze?: true | number;
  readonly guestAgent?: string;
}

/** An agent that has to write out much of a page cache takes its time; a guest whose disk hangs must not be waited for for ever. */
const FREEZE_LIMIT_S = 10;

export function addSessionOptions(to: Command): Command {
  return to
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
    .option('--cache <MiB>', 'memory for previous versions of pages (default: 256)', wholeNumber(0))
    .option('--workers <n>', 'threads that copy and encode (default: one a core, at most 4)', wholeNumber(1))
    .option('--compression <level>', 'zstd level, 0 = off (default: 3)', wholeNumber(0))
    .option(
      '--memory-only',
      'leave the disks alone: a restore is only right with disks put back to the same instant',
    )
    .addOption(
      new Option(
        '--disks <mode>',
        'how qcow2 disks are snapshotted in the pause; logical volumes are by lvm2 and Ceph images by rbd, beside a --hook only with lvm, rbd',
      )
        .choices(['auto', 'internal', 'external', 'lvm', 'rbd'])
        .default('auto'),
    )
    .option(
      '--lvm-size <size>',
      'room for the snapshot of each thick logical volume, as lvcreate has it (default: 20%ORIGIN)',
    )
    .option(
      '--wait-job <seconds>',
      'of a libvirt domain: wait that long for a running job (save, migration, backup) instead of refusing',
      positiveNumber,
    )
    .option(
      '--freeze [seconds]',
      `have the agent in the guest freeze its file systems for the pause, within this time (default: ${FREEZE_LIMIT_S})`,
      positiveNumber,
    )
    .option(
      '--guest-agent <path>',
      "socket of the guest's agent (default: the one of QEMU's command line; of a libvirt domain, libvirt's)",
    )
    .option('--hook <command>', 'shell command run around the pause, see docs/operations.md');
}

export function sessionSettings(
  options: SessionCliOptions,
): Omit<SessionOptions, 'repository' | 'hypervisors' | 'vm' | 'signal'> {
  return {
    name: options.name,
    tracker: options.tracker,
    maxPauseMs: options.maxPause,
    cacheBytes: options.cache === undefined ? undefined : options.cache * 2 ** 20,
    workers: options.workers,
    compressionLevel: options.compression,
    memoryOnly: options.memoryOnly,
    diskMode: options.disks,
    volumeSnapshotSize: options.lvmSize,
    hook: options.hook,
    waitJobMs: options.waitJob === undefined ? undefined : options.waitJob * 1000,
    freezeLimitMs: freezeLimitMs(options.freeze),
    guestAgent: options.guestAgent,
  };
}

function freezeLimitMs(freeze: true | number | undefined): number | undefined {
  if (freeze === undefined) return undefined;
  return (freeze === true ? FREEZE_LIMIT_S : freeze) * 1000;
}
