import type { Command } from 'commander';

import type { RestoreRequest } from '../../hypervisor/restore.js';
import { hypervisors } from '../../index.js';
import { restoreCheckpoint } from '../../restore/restore.js';
import { command, run, type SharedOptions } from '../command.js';
import { formatBytes } from '../../text.js';
import { collect } from '../parse.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly to?: string;
  readonly setArg: readonly string[];
  readonly dropArg: readonly string[];
  readonly program?: string;
  readonly qmp?: string;
  readonly paused?: boolean;
  readonly keepDisks?: boolean;
  readonly log?: string;
  readonly guestAgent?: string;
  readonly newName?: string;
  readonly newMacs?: boolean;
  readonly disk: readonly string[];
  readonly xmlEdit?: string;
}

export function restoreCommand(): Command {
  return command('restore', 'bring a VM back from a checkpoint', [
    'cairn restore latest --repo /srv/cairn',
    'cairn restore 3f9a --qmp /run/web2.qmp --set-arg -name=web2 --paused',
    'cairn restore latest --name web1 --to unix:/run/incoming.sock',
    'cairn restore latest --name web1 --to libvirt --new-name web2 --disk vda=/srv/web2.qcow2',
    'cairn restore latest --name dom1 --new-name dom2   # a Xen domain',
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest')
    .option('--name <name>', 'look only in this chain')
    .option(
      '--to <address>',
      'send to a waiting qemu -incoming (unix:PATH or tcp:HOST:PORT), or give it to libvirt[:URI], instead of starting a QEMU',
    )
    .option(
      '--set-arg <-option=value>',
      'replace or add an argument of the recorded command line (repeatable)',
      collect,
      [],
    )
    .option(
      '--drop-arg <-option>',
      'leave out an argument of the recorded command line (repeatable)',
      collect,
      [],
    )
    .option('--program <path>', 'start this program instead of the recorded one')
    .option('--qmp <path>', 'QMP socket of the new VM (default: as recorded)')
    .option('--paused', 'leave the VM paused')
    .option('--keep-disks', 'do not roll the disks back to the checkpoint')
    .option('--new-name <name>', 'libvirt, Xen: restore under this name and a new UUID')
    .option('--new-macs', 'libvirt: new MAC addresses, which the guest uses from its next boot on')
    .option('--disk <target=path>', 'libvirt, Xen: this disk lies at PATH now (repeatable)', collect, [])
    .option('--xml-edit <command>', 'libvirt: shell command through which the domain XML goes')
    .option(
      '--guest-agent <path>',
      "socket of the guest's agent, which thaws the guest of a checkpoint taken with --freeze (default: that of the command line)",
    )
    .option('--log <path>', 'output of the new QEMU goes here')
    .action((checkpoint: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const manifest = await repository.find(checkpoint, options.name);
        const result = await restoreCheckpoint(
          { repository, hypervisors: hypervisors(), manifest },
          {
            setArgs: options.setArg,
            dropArgs: options.dropArg,
            paused: options.paused ?? false,
            keepDisks: options.keepDisks ?? false,
            signal,
            onProgress: (done, total) => reporter.progress({ task: 'restore', done, total, unit: 'bytes' }),
            ...editsOf(options),
            ...(options.to === undefined ? {} : { target: options.to }),
            ...(options.program === undefined ? {} : { program: options.program }),
            ...(options.qmp === undefined ? {} : { socketPath: options.qmp }),
            ...(options.log === undefined ? {} : { logPath: options.log }),
            ...(options.guestAgent === undefined ? {} : { guestAgent: options.guestAgent }),
          },
        );
        if (result.frozenBecause !== undefined)
          reporter.warning(`the guest's file systems are still frozen: ${result.frozenBecause}`);
        const where =
          result.vmAddress === ''
            ? `sent to ${options.to ?? ''}`
            : [...(result.pid === 0 ? [] : [`process ${result.pid}`]), result.vmAddress].join(', ');
        reporter.summary(
          { checkpointId: manifest.id, ...result },
          `restored ${manifest.id}: ${where}, ${result.running ? 'running' : 'paused'}, ${formatBytes(result.streamBytes)} sent`,
        );
        return undefined;
      }),
    );
}

function editsOf({ newName, newMacs, disk, xmlEdit }: Options): Pick<RestoreRequest, 'edits'> {
  if (newName === undefined && newMacs === undefined && disk.length === 0 && xmlEdit === undefined) return {};
  return {
    edits: {
      newMacs: newMacs ?? false,
      diskPaths: disk,
      ...(newName === undefined ? {} : { newName }),
      ...(xmlEdit === undefined ? {} : { command: xmlEdit }),
    },
  };
}
